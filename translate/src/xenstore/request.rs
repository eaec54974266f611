//! The guest's requests (`docs/misc/xenstore.txt`; `process_message` and `do_*` of xenstored).

use xen_abi::Errno;
use xen_abi::io::xs_wire::{PAYLOAD_MAX, XsType};

use super::connection::{FEATURES, Request};
use super::db::Caller;
use super::node::{MAX_PERMS, OWNER, Perms, READ, WRITE};
use super::path::{self, GUEST_PREFIX};
use super::pool::Buf;
use super::store::Store;
use super::watch::{Match, Side, Wanted};

/// What is done after the reply.
pub(super) enum After {
    Nothing,
    /// This watch fires for the first time.
    Announce(u16),
}

/// Texts that end with a NUL; what is behind the last is left out.
fn texts(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = payload.iter().rposition(|byte| *byte == 0);
    let whole = end.map(|end| payload.get(..end).unwrap_or_default());
    whole.into_iter().flat_map(|whole| whole.split(|byte| *byte == 0))
}

/// The one text a payload consists of.
fn one_text(payload: &[u8]) -> Result<&[u8], Errno> {
    match payload.split_last() {
        Some((0, text)) if !text.contains(&0) => Ok(text),
        _ => Err(Errno::EINVAL),
    }
}

/// A number as `atoi` reads it, within what an offset or depth can be; negative ones give `None`.
fn number(text: &[u8]) -> Option<u32> {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let value = digits.fold(0u32, |value, digit| {
        value.saturating_mul(10).saturating_add(u32::from(digit - b'0'))
    });
    (!negative || value == 0).then_some(value)
}

/// A domain id (`parse_domid`).
fn domain_id(text: &[u8]) -> Result<u16, Errno> {
    let good = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let id = number(text).and_then(|id| u16::try_from(id).ok());
    id.filter(|_| good).ok_or(Errno::EINVAL)
}

/// The absolute form of the path that begins the payload and has `len` bytes.
fn absolute<'r>(request: &Request<'r>, len: usize, special: bool) -> Result<&'r [u8], Errno> {
    let path = request.payload().get(..len).ok_or(Errno::EINVAL)?;
    let path = match path.first() {
        Some(b'/' | b'@') => path,
        _ => request.with_prefix(len),
    };
    path::check(path, special, false)?;
    Ok(path)
}

/// The absolute form of the only text.
fn only_path<'r>(request: &Request<'r>, special: bool) -> Result<&'r [u8], Errno> {
    absolute(request, one_text(request.payload())?.len(), special)
}

/// The absolute form of the first of several texts, and what is behind its NUL.
fn first_path<'r>(request: &Request<'r>, special: bool) -> Result<(&'r [u8], &'r [u8]), Errno> {
    let payload = request.payload();
    let len = payload.iter().position(|byte| *byte == 0).ok_or(Errno::EINVAL)?;
    let rest = payload.get(len + 1..).unwrap_or_default();
    Ok((absolute(request, len, special)?, rest))
}

impl Store {
    /// Carries out a request; the reply's payload goes to `reply`.
    pub(super) fn request(
        &mut self,
        request: &Request<'_>,
        reply: &mut Buf,
    ) -> Result<After, Errno> {
        let kind = request.header.type_;
        match kind {
            XsType::WATCH => return self.do_watch(request, reply),
            XsType::UNWATCH => {
                self.do_unwatch(request)?;
                return ok(reply);
            }
            // A domU may not ask these.
            XsType::CONTROL
            | XsType::INTRODUCE
            | XsType::RELEASE
            | XsType::IS_DOMAIN_INTRODUCED
            | XsType::RESUME
            | XsType::SET_TARGET
            | XsType::SET_FEATURE
            | XsType::GET_QUOTA
            | XsType::SET_QUOTA => return Err(Errno::EACCES),
            XsType::WATCH_EVENT | XsType::ERROR => return Err(Errno::ENOSYS),
            XsType(0..=26) if kind.0 != 20 => {}
            _ => return Err(Errno::ENOSYS),
        }
        let c = self.caller(request.header.tx_id)?;
        match kind {
            XsType::DIRECTORY | XsType::READ | XsType::GET_PERMS => self.do_get(c, request, reply),
            XsType::DIRECTORY_PART => self.do_directory_part(c, request, reply),
            XsType::TRANSACTION_START if c.space != 0 => Err(Errno::EBUSY),
            XsType::TRANSACTION_START => {
                reply.add_number(self.begin()?.into())?;
                terminated(reply)
            }
            XsType::TRANSACTION_END => {
                let commit = match one_text(request.payload())? {
                    b"T" => true,
                    b"F" => false,
                    _ => return Err(Errno::EINVAL),
                };
                self.end(c, commit)?;
                ok(reply)
            }
            XsType::GET_DOMAIN_PATH => {
                let id = domain_id(one_text(request.payload())?)?;
                reply.add(b"/local/domain/")?;
                reply.add_number(id.into())?;
                terminated(reply)
            }
            XsType::GET_FEATURE => {
                if request.payload().contains(&0) {
                    return Err(Errno::EACCES);
                }
                reply.add_number(FEATURES.into())?;
                terminated(reply)
            }
            XsType::RESET_WATCHES => {
                self.remove_all_watches(Side::Guest);
                self.abandon_all();
                ok(reply)
            }
            XsType::WRITE => self.do_write(c, request, reply),
            XsType::MKDIR => self.do_mkdir(c, request, reply),
            XsType::RM => self.do_rm(c, request, reply),
            XsType::SET_PERMS => self.do_set_perms(c, request, reply),
            _ => Err(Errno::ENOSYS),
        }
    }

    /// DIRECTORY, READ, GET_PERMS.
    fn do_get(
        &mut self,
        c: Caller,
        request: &Request<'_>,
        reply: &mut Buf,
    ) -> Result<After, Errno> {
        let kind = request.header.type_;
        let path = only_path(request, kind == XsType::GET_PERMS)?;
        let at = self.permitted(c, path, READ)?;
        let node = self.pool.node(at).ok_or(Errno::ENOENT)?;
        match kind {
            XsType::GET_PERMS => node.perms.text(reply)?,
            XsType::READ => self.pool.pieces(node.value).try_for_each(|part| reply.add(part))?,
            _ => self.pool.pieces(node.children).try_for_each(|part| reply.add(part))?,
        }
        Ok(After::Nothing)
    }

    fn do_directory_part(
        &mut self,
        c: Caller,
        request: &Request<'_>,
        reply: &mut Buf,
    ) -> Result<After, Errno> {
        if texts(request.payload()).count() != 2 {
            return Err(Errno::EINVAL);
        }
        let (path, rest) = first_path(request, false)?;
        let at = self.permitted(c, path, READ)?;
        let node = self.pool.node(at).ok_or(Errno::ENOENT)?;
        let offset = number(rest).map_or(usize::MAX, |offset| offset as usize);
        reply.add_number(node.generation.count())?;
        reply.add(b"\0")?;
        let room = PAYLOAD_MAX - reply.get().len() - 1;
        let start = reply.get().len();
        let mut end = offset;
        // Whole names, as many as fit; an empty one says that these were the last.
        while end < node.children.len() {
            let before = reply.get().len();
            let name = self.pool.string_at(node.children, end, reply).ok_or(Errno::E2BIG);
            let name = name.and_then(|len| reply.add(b"\0").map(|()| len + 1));
            match name {
                Ok(len) if reply.get().len() - start <= room => end += len,
                _ => {
                    reply.cut(before);
                    return Ok(After::Nothing);
                }
            }
        }
        terminated(reply)
    }

    fn do_write(
        &mut self,
        c: Caller,
        request: &Request<'_>,
        reply: &mut Buf,
    ) -> Result<After, Errno> {
        let (path, value) = first_path(request, false)?;
        match self.permitted(c, path, WRITE) {
            Ok(at) => self.set_value(c, at, value)?,
            Err(Errno::ENOENT) => self.create(c, path, value)?,
            Err(error) => return Err(error),
        }
        self.changed_by(c, path);
        ok(reply)
    }

    /// Fires the watches for a node the guest changed.
    fn changed_by(&mut self, c: Caller, path: &[u8]) {
        let now = self.find(c.space, path).and_then(|at| self.pool.node(at));
        let now = now.map(|node| node.perms);
        self.fire(c, path, Match::Subtree, now, None);
    }

    fn do_mkdir(
        &mut self,
        c: Caller,
        request: &Request<'_>,
        reply: &mut Buf,
    ) -> Result<After, Errno> {
        let path = only_path(request, false)?;
        match self.permitted(c, path, WRITE) {
            Ok(_) => {}
            Err(Errno::ENOENT) => {
                self.create(c, path, b"")?;
                self.changed_by(c, path);
            }
            Err(error) => return Err(error),
        }
        ok(reply)
    }

    fn do_rm(&mut self, c: Caller, request: &Request<'_>, reply: &mut Buf) -> Result<After, Errno> {
        let path = only_path(request, false)?;
        match self.permitted(c, path, WRITE) {
            Ok(_) if path == b"/" => return Err(Errno::EINVAL),
            Ok(_) => self.remove(c, path)?,
            Err(Errno::ENOENT) => {
                if self.lookup(c, path::parent(path))?.is_none() {
                    return Err(Errno::ENOENT);
                }
            }
            Err(error) => return Err(error),
        }
        ok(reply)
    }

    fn do_set_perms(
        &mut self,
        c: Caller,
        request: &Request<'_>,
        reply: &mut Buf,
    ) -> Result<After, Errno> {
        let entries = || texts(request.payload()).skip(1);
        match entries().count() {
            0 => return Err(Errno::EINVAL),
            1..=MAX_PERMS => {}
            _ => return Err(Errno::ENOSPC),
        }
        let mut perms = Perms::ABSENT;
        entries().try_for_each(|entry| perms.add(entry))?;
        if !perms.owner_exists() {
            return Err(Errno::ENOENT);
        }
        let (path, _) = first_path(request, true)?;
        let at = self.permitted(c, path, WRITE | OWNER)?;
        let before = self.pool.node(at).ok_or(Errno::ENOENT)?.perms;
        if perms.owner() != before.owner() {
            return Err(Errno::EPERM);
        }
        self.set_node_perms(c, at, perms)?;
        self.fire(c, path, Match::Subtree, Some(perms), Some(before));
        ok(reply)
    }

    fn do_watch(&mut self, request: &Request<'_>, reply: &mut Buf) -> Result<After, Errno> {
        let mut texts = texts(request.payload());
        let (Some(path), Some(token)) = (texts.next(), texts.next()) else {
            return Err(Errno::EINVAL);
        };
        let depth = match (texts.next(), texts.next()) {
            (None, _) => None,
            // No path has as many levels as a u16 can say.
            (Some(depth), None) => {
                let depth = number(depth).ok_or(Errno::EINVAL)?;
                Some(u16::try_from(depth).unwrap_or(u16::MAX))
            }
            (Some(_), Some(_)) => return Err(Errno::EINVAL),
        };
        let relative = !matches!(path.first(), Some(b'/' | b'@'));
        let path = absolute(request, path.len(), true)?;
        let wanted = Wanted { path, token, number: 0 };
        let at = self.add_watch(Side::Guest, &wanted, depth, relative)?;
        ok(reply)?;
        Ok(After::Announce(at))
    }

    fn do_unwatch(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let mut texts = texts(request.payload());
        let (Some(path), Some(token), None) = (texts.next(), texts.next(), texts.next()) else {
            return Err(Errno::EINVAL);
        };
        let path = absolute(request, path.len(), true)?;
        self.remove_watch(Side::Guest, &Wanted { path, token, number: 0 })
    }
}

/// The reply of requests that have nothing to tell.
fn ok(reply: &mut Buf) -> Result<After, Errno> {
    reply.add(b"OK\0")?;
    Ok(After::Nothing)
}

fn terminated(reply: &mut Buf) -> Result<After, Errno> {
    reply.add(b"\0")?;
    Ok(After::Nothing)
}

const _: () = assert!(GUEST_PREFIX.len() <= super::connection::PREFIX_ROOM);
