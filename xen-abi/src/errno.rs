//! Guest-visible error numbers (`xen/include/public/errno.h`).

/// A Xen error number, positive; a hypercall returns it negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Errno(pub u16);

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Self = Self($value);)*
        }
    };
}
errnos! {
    EPERM = 1, "Operation not permitted.";
    ENOENT = 2, "No such object.";
    ESRCH = 3, "No such domain.";
    EINTR = 4, "Interrupted.";
    EIO = 5, "I/O error.";
    ENXIO = 6, "No such device or address.";
    E2BIG = 7, "Argument list too long.";
    EBADF = 9, "Bad handle.";
    EAGAIN = 11, "Try again.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "Permission denied.";
    EFAULT = 14, "Bad guest address.";
    EBUSY = 16, "Busy.";
    EEXIST = 17, "Already exists.";
    EXDEV = 18, "Cross-device.";
    ENODEV = 19, "No such device.";
    EISDIR = 21, "Is a directory.";
    EINVAL = 22, "Invalid argument.";
    ENOSPC = 28, "No space.";
    EROFS = 30, "Read-only.";
    EDOM = 33, "Argument out of domain.";
    ERANGE = 34, "Result out of range.";
    EDEADLK = 35, "Would deadlock.";
    ENOSYS = 38, "Not implemented.";
    ENOTEMPTY = 39, "Not empty.";
    ENODATA = 61, "No data.";
    ETIME = 62, "Timer expired.";
    EBADMSG = 74, "Bad message.";
    EOVERFLOW = 75, "Value too large.";
    EILSEQ = 84, "Illegal sequence.";
    ERESTART = 85, "Restart the call.";
    EOPNOTSUPP = 95, "Not supported.";
    EADDRINUSE = 98, "Address in use.";
    ENOBUFS = 105, "No buffer space.";
    ENOTCONN = 107, "Not connected.";
    ETIMEDOUT = 110, "Timed out.";
}

impl Errno {
    /// The value a hypercall returns for this error.
    #[must_use]
    pub const fn to_ret(self) -> i64 {
        -(self.0 as i64)
    }
}
