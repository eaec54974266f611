//! The load tests' disk: programs that keep processors busy, a C compiler, and what it compiles.

use crate::guests;
use crate::parts::{self, run};
use anyhow::{Context, Result, ensure};
use pontoon::initramfs::Extra;
use pontoon::kernel::Kernel;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

const INIT: &str = include_str!("../e2e/load-init.sh");
const MODULES: [&str; 2] = ["xen-blkfront", "ext4"];
const NATIVE_MODULES: [&str; 3] = ["hv_storvsc", "sd_mod", "ext4"];

const PROGRAMS: [&str; 6] = [
    "/usr/bin/hackbench",
    "/usr/bin/stress-ng",
    "/usr/bin/make",
    "/usr/bin/gcc",
    "/usr/bin/as",
    "/usr/bin/ld",
];

/// Files that are compiled, and functions in each.
const FILES: u32 = 8;
const FUNCTIONS: u32 = 6;

const MAKEFILE: &str = "objects := $(sort $(patsubst %.c,%.o,$(wildcard *.c)))
all.o: $(objects)
\tld -r -o $@ $(objects)
%.o: %.c
\tgcc -O1 -ffreestanding -c $< -o $@
";

/// The first process with what it needs, natively or for the shim.
pub fn initramfs(kernel: &Kernel, native: bool) -> Result<Vec<u8>> {
    let names: &[&str] = if native { &NATIVE_MODULES } else { &MODULES };
    let mut extras = parts::drivers(kernel, names)?;
    for name in ["clocks", "scale"] {
        let program = guests::program(name)?;
        let data = fs::read(&program).with_context(|| program.display().to_string())?;
        extras.push(Extra { name: name.into(), data });
    }
    guests::with_init(&[INIT], &extras)
}

/// The disk; the MD5 sum of the objects as this machine's processors make them, one after the other.
pub fn disk(image: &Path) -> Result<String> {
    let said = run(Command::new("/usr/bin/gcc").arg("-print-prog-name=cc1"))?;
    let compiler = String::from_utf8(said)?.trim().to_owned();
    let mut programs = PROGRAMS.to_vec();
    programs.push(&compiler);
    let dir = tempfile::tempdir()?;
    let mut files = vec![("src/Makefile".to_owned(), MAKEFILE.to_owned())];
    files.extend((0..FILES).map(|number| (format!("src/part{number:02}.c"), source(number))));
    for (name, text) in &files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().context("src")?)?;
        fs::write(path, text)?;
    }
    let files: Vec<_> = files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
    parts::programs_disk(image, &programs, &files)?;
    let src = dir.path().join("src");
    run(Command::new("/usr/bin/make").arg("-s").arg("-C").arg(&src))?;
    let sum = run(Command::new("/bin/sh").args(["-c", "cat *.o | md5sum"]).current_dir(src))?;
    let sum = String::from_utf8(sum)?;
    let (sum, _) = sum.split_once(' ').context("no sum")?;
    ensure!(sum.len() == 32, "md5sum says {sum}");
    Ok(sum.to_owned())
}

/// Numbers for [`source`]: xorshift64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % bound
    }
}

/// A C file that is like no other, and the same each time: functions with loops, tables, switches and
/// calls of those before them.
fn source(number: u32) -> String {
    let mut numbers = Numbers(0x9e37_79b9 + u64::from(number));
    let mut text = String::from("typedef unsigned long word;\n");
    for index in 0..FUNCTIONS {
        function(&mut text, number, index, &mut numbers);
    }
    text
}

fn function(text: &mut String, file: u32, index: u32, numbers: &mut Numbers) {
    let mut line = |words: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = text.write_fmt(words);
        text.push('\n');
    };
    let size = 4 + numbers.below(12);
    line(format_args!("static word table{index}[{size}] = {{"));
    for _ in 0..size {
        line(format_args!("\t{}ul,", numbers.below(1 << 40)));
    }
    line(format_args!("}};\nword part{file}_{index}(word a, word b)\n{{"));
    line(format_args!("\tword c = {}, i;", numbers.below(1000)));
    for _ in 0..4 + numbers.below(5) {
        let (some, few) = (numbers.below(1 << 20), 1 + numbers.below(30));
        match numbers.below(5) {
            0 => line(format_args!("\tfor (i = 0; i < {few}; i++) c += (a >> i) * (b ^ {some});")),
            1 => line(format_args!(
                "\ttable{index}[a % {size}] += c; b = (b << {few}) | (b >> (64 - {few}));"
            )),
            2 => {
                line(format_args!("\tswitch ((a ^ c) % 7) {{"));
                for case in 0..6 {
                    let value = numbers.below(1 << 16);
                    line(format_args!("\tcase {case}: c = c * {value} + b; break;"));
                }
                line(format_args!("\tdefault: c ^= {some}; }}"));
            }
            3 => line(format_args!(
                "\twhile (b > {some} && c % {few}) {{ b /= 3; c -= a & 1 ? b : {few}; }}"
            )),
            _ if index > 0 => {
                let other = numbers.below(u64::from(index));
                line(format_args!("\tc += part{file}_{other}(b + {some}, c | {few});"));
            }
            _ => line(format_args!("\tif (a < b) c = a * {some}; else c = b - {few};")),
        }
    }
    line(format_args!("\tfor (i = 0; i < {size}; i++) c ^= table{index}[i] + i;\n\treturn c;\n}}"));
}

/// Lines of a kernel log about processors that are stuck, grace periods that do not end, and clocks.
#[must_use]
pub fn complaints(log: &[String]) -> Vec<&str> {
    const WORDS: [&str; 10] = [
        "soft lockup",
        "hard LOCKUP",
        "rcu:",
        "stall",
        "clocksource",
        "blocked for more than",
        "BUG",
        "Oops",
        "WARNING",
        "Call Trace",
    ];
    let is_one = |line: &&str| WORDS.iter().any(|word| line.contains(word));
    log.iter().map(String::as_str).filter(is_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_compile_and_stay_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part.c");
        fs::write(&path, source(3)).unwrap();
        assert_eq!(source(3), source(3));
        assert_ne!(source(3), source(4));
        let mut compiler = Command::new("/usr/bin/gcc");
        run(compiler.args(["-O0", "-S", "-o", "/dev/null"]).arg(path)).unwrap();
    }

    #[test]
    fn only_what_matters_here_is_a_complaint() {
        let log = [
            "<4>[ 1.0] PCI: no config space",
            "<3>[ 2.0] rcu: INFO: rcu_sched self-detected stall",
        ];
        assert_eq!(complaints(&log.map(str::to_owned)).len(), 1);
    }
}
