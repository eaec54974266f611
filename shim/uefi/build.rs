//! Puts the shim into the application: what is loaded of the ELF file that `PONTOON_SHIM_ELF` names.
//! Without it (lints, editors) the application is built without a shim, and says so when it is run.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=PONTOON_SHIM_ELF");
    println!("cargo:rerun-if-changed=build.rs");
    let mut image = Vec::new();
    if let Some(path) = std::env::var_os("PONTOON_SHIM_ELF").map(PathBuf::from) {
        println!("cargo:rerun-if-changed={}", path.display());
        image = std::fs::read(&path).expect("PONTOON_SHIM_ELF can be read");
        let len = boot_abi::elf::strip(&mut image).expect("PONTOON_SHIM_ELF is an ELF file");
        image.truncate(len);
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("shim.elf"), image).expect("OUT_DIR can be written");
}
