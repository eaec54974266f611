//! The shim's words.

use alloc::vec::Vec;

use translate::builder::cmdline;

/// Words of the configuration, one or more a line, `#` beginning a comment; then those of the load
/// options that are the shim's.
pub fn words(config: &[u8], options: &[u8]) -> Vec<u8> {
    let lines = config.split(|&c| matches!(c, b'\n' | b'\r'));
    let bare = lines.map(|line| line.split(|&c| c == b'#').next().unwrap_or_default());
    let ours = cmdline::words(options).filter(|word| cmdline::is_ours(word));
    let mut words = Vec::new();
    for word in bare.flat_map(cmdline::words).chain(ours) {
        words.extend_from_slice(word);
        words.push(b' ');
    }
    words
}

/// A command line without white space at its end and with spaces for line ends.
pub fn line(text: &[u8]) -> Vec<u8> {
    let end = text.iter().position(|&c| c == 0).unwrap_or(text.len());
    let space = |&c: &u8| if c.is_ascii_whitespace() { b' ' } else { c };
    text[..end].trim_ascii_end().iter().map(space).collect()
}
