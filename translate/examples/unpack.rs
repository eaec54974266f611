//! Reads a kernel as the shim does at boot, for counting what that takes (docs/measurements.md).

fn main() {
    let path = std::env::args_os().nth(1).expect("usage: unpack KERNEL");
    let file = std::fs::read(path).expect("a file");
    let kernel = translate::builder::Kernel::load(&file).expect("a kernel");
    println!("{} segments", kernel.segments.len());
}
