//! The store's protocol, its errors, and the states of devices in it.

use xen_abi::errno::Errno;
use xen_abi::io::xenbus::XenbusState;
use xen_abi::io::xs_wire::{
    self, RingError, XenstoreDomainInterface, XsType, XsdSockmsg, error_name,
};

use super::{Table, codes, constants, structures};

/// Adds all of it.
pub fn add(t: &mut Table) {
    structures! { t;
        XsdSockmsg = "struct xsd_sockmsg" { type_ = "type", req_id, tx_id, len }
        XenstoreDomainInterface = "struct xenstore_domain_interface" {
            req, rsp, req_cons, req_prod, rsp_cons, rsp_prod, server_features, connection, error,
        }
    }
    codes! { t; XsType, "XS_", to_uppercase {
        CONTROL, DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, TRANSACTION_START, TRANSACTION_END,
        INTRODUCE, RELEASE, GET_DOMAIN_PATH, WRITE, MKDIR, RM, SET_PERMS, WATCH_EVENT, ERROR,
        IS_DOMAIN_INTRODUCED, RESUME, SET_TARGET, RESET_WATCHES, DIRECTORY_PART,
    } }
    codes! { t; RingError, "XENSTORE_ERROR_", to_uppercase { NONE, COMM, RINGIDX, PROTO } }
    codes! { t; XenbusState, "XenbusState", to_uppercase {
        UNKNOWN = "XenbusStateUnknown", INITIALISING = "XenbusStateInitialising",
        INIT_WAIT = "XenbusStateInitWait", INITIALISED = "XenbusStateInitialised",
        CONNECTED = "XenbusStateConnected", CLOSING = "XenbusStateClosing",
        CLOSED = "XenbusStateClosed", RECONFIGURING = "XenbusStateReconfiguring",
        RECONFIGURED = "XenbusStateReconfigured",
    } }
    constants! { t;
        xs_wire::RING_SIZE = "XENSTORE_RING_SIZE",
        xs_wire::PAYLOAD_MAX = "XENSTORE_PAYLOAD_MAX",
        xs_wire::ABS_PATH_MAX = "XENSTORE_ABS_PATH_MAX",
        xs_wire::REL_PATH_MAX = "XENSTORE_REL_PATH_MAX",
        xs_wire::FEATURE_RECONNECTION = "XENSTORE_SERVER_FEATURE_RECONNECTION",
        xs_wire::FEATURE_ERROR = "XENSTORE_SERVER_FEATURE_ERROR",
        xs_wire::CONNECTED = "XENSTORE_CONNECTED",
        xs_wire::RECONNECT = "XENSTORE_RECONNECT",
    }
    // Every error has the name the header's table gives it, and the table has no more.
    let errors = [
        Errno::EINVAL,
        Errno::EACCES,
        Errno::EEXIST,
        Errno::EISDIR,
        Errno::ENOENT,
        Errno::ENOMEM,
        Errno::ENOSPC,
        Errno::EIO,
        Errno::ENOTEMPTY,
        Errno::ENOSYS,
        Errno::EROFS,
        Errno::EBUSY,
        Errno::EAGAIN,
        Errno::E2BIG,
        Errno::EPERM,
    ];
    for error in errors {
        let name = String::from_utf8_lossy(error_name(error));
        let name = name.trim_end_matches('\0');
        t.add(format!("number of {name}"), name.to_owned(), error.0.into());
    }
    // EISCONN is the one that no domU can meet.
    let count = "sizeof(xsd_errors) / sizeof(xsd_errors[0])".to_owned();
    t.add("number of errors".to_owned(), count, errors.len() as u64 + 1);
}
