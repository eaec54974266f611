//! hvhost
fn main() {}
