//! iret.
