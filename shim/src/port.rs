//! I/O ports of the few legacy devices the shim uses itself: serial port, CMOS, PIT, ACPI registers.
//! None of them writes to memory, so an access is no more than an effect on that device; what is
//! not there reads as ones.

use x86_64::instructions::port::{Port, PortRead, PortWrite};

/// Reads a port.
pub fn read<T: PortRead>(port: u16) -> T {
    // SAFETY: see the module: the devices meant have no access to memory.
    unsafe { Port::new(port).read() }
}

/// Writes a port.
pub fn write<T: PortWrite>(port: u16, value: T) {
    // SAFETY: as above.
    unsafe { Port::new(port).write(value) };
}
