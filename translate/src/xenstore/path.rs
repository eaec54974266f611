//! Paths.

use xen_abi::Errno;
use xen_abi::io::xs_wire::{ABS_PATH_MAX, REL_PATH_MAX};

/// Where relative paths of the guest begin; its id is [`crate::evtchn::GUEST_DOMID`].
pub(super) const GUEST_PREFIX: &[u8] = b"/local/domain/1/";

/// The path of the node above; that of `/` and of special ones is `/`.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) => b"/",
        Some(slash) => path.get(..slash).unwrap_or(b"/"),
    }
}

/// The last part of a path that is not `/`.
pub(super) fn name(path: &[u8]) -> &[u8] {
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    path.get(start..).unwrap_or_default()
}

/// The next longer path on the way from `base` down to `path`, which is below it.
pub(super) fn below<'a>(base: &[u8], path: &'a [u8]) -> &'a [u8] {
    let start = if base == b"/" { 1 } else { base.len() + 1 };
    let rest = path.get(start..).unwrap_or_default();
    let len = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    path.get(..start + len).unwrap_or(path)
}

/// Bytes of `/local/domain/<id>/` at the start, which do not count for a path's length.
fn domain_part(path: &[u8]) -> usize {
    let prefix = b"/local/domain/";
    let Some(rest) = path.strip_prefix(prefix) else { return 0 };
    let digits = rest.iter().take(5).take_while(|byte| byte.is_ascii_digit()).count();
    match rest.get(digits) {
        Some(b'/') if digits != 0 => prefix.len() + digits + 1,
        _ => 0,
    }
}

/// Checks a path that begins with `/` or `@` (`canonicalize` of xenstored).
///
/// # Errors
/// `EINVAL`.
pub(super) fn check(path: &[u8], special: bool, privileged: bool) -> Result<(), Errno> {
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(byte);
    let rooted = match path.first() {
        Some(b'/') => true,
        Some(b'@') => special,
        _ => false,
    };
    let slashes = path.windows(2).any(|two| two == b"//") || path.len() > 1 && path.ends_with(b"/");
    let limit = if privileged { ABS_PATH_MAX } else { REL_PATH_MAX + domain_part(path) };
    if rooted && path.iter().all(valid) && !slashes && path.len() <= limit.min(ABS_PATH_MAX) {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        assert_eq!(
            GUEST_PREFIX,
            std::format!("/local/domain/{}/", crate::evtchn::GUEST_DOMID.0).as_bytes()
        );
        for (path, up, last) in
            [("/a", "/", "a"), ("/a/bc", "/a", "bc"), ("@x", "/", "@x"), ("@x/1", "@x", "1")]
        {
            assert_eq!(parent(path.as_bytes()), up.as_bytes());
            assert_eq!(name(path.as_bytes()), last.as_bytes());
        }
        assert_eq!(below(b"/", b"/a/b/c"), b"/a");
        assert_eq!(below(b"/a", b"/a/b/c"), b"/a/b");
        assert_eq!(below(b"/a/b", b"/a/b/c"), b"/a/b/c");
    }

    #[test]
    fn what_a_path_may_be() {
        for path in ["/", "/a", "/a-b_C@9/d", "/local/domain/1/x"] {
            assert_eq!(check(path.as_bytes(), false, false), Ok(()), "{path}");
        }
        for path in ["", "a", "//", "/a/", "/a//b", "/a b", "/a+b", "/a\u{e4}", "@introduceDomain"]
        {
            assert_eq!(check(path.as_bytes(), false, true), Err(Errno::EINVAL), "{path}");
        }
        assert_eq!(check(b"@introduceDomain", true, false), Ok(()));
        let long = |start: &str, len| {
            let mut path = start.as_bytes().to_vec();
            path.resize(start.len() + len, b'a');
            path
        };
        assert_eq!(check(&long("/", 2047), false, false), Ok(()));
        assert_eq!(check(&long("/", 2048), false, false), Err(Errno::EINVAL));
        assert_eq!(check(&long("/local/domain/12/", 2048), false, false), Ok(()));
        assert_eq!(check(&long("/local/domain/12/", 2049), false, false), Err(Errno::EINVAL));
        assert_eq!(check(&long("/local/domain/123456/", 2040), false, false), Err(Errno::EINVAL));
        assert_eq!(check(&long("/", 3071), false, true), Ok(()));
        assert_eq!(check(&long("/", 3072), false, true), Err(Errno::EINVAL));
    }
}
