//! pontoon
fn main() {}
