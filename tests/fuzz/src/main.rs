//! All targets in one program.
//!
//! Built by `cargo xtask fuzz` it is libFuzzer on the target that `PONTOON_FUZZ` names; without a
//! name it lists the targets, and with `PONTOON_FUZZ_SETUP` it writes a target's seeds and
//! dictionary into that directory. Built as any other program it runs a target once on each of
//! the files it is given.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod under_libfuzzer {
    use pontoon_fuzz::{TARGETS, Target};
    use std::path::Path;
    use std::sync::OnceLock;

    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

    /// Chooses the target, or does what else was asked for and leaves.
    pub(super) fn init() {
        let Ok(name) = std::env::var("PONTOON_FUZZ") else {
            for target in &TARGETS {
                println!("{} {} {}", target.name, target.max_len, u8::from(target.is_required));
            }
            std::process::exit(0);
        };
        let target = Target::named(&name).unwrap_or_else(|| panic!("no target is named {name}"));
        if let Some(dir) = std::env::var_os("PONTOON_FUZZ_SETUP") {
            target.write_setup(Path::new(&dir)).expect("seeds and dictionary can be written");
            std::process::exit(0);
        }
        CHOSEN.get_or_init(|| target);
    }

    pub(super) fn run(data: &[u8]) {
        (CHOSEN.get().expect("chosen at the start").run)(data);
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(init: under_libfuzzer::init(), |data: &[u8]| under_libfuzzer::run(data));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1);
    let name = args.next().and_then(|name| name.into_string().ok());
    let Some(target) = name.as_deref().and_then(pontoon_fuzz::Target::named) else {
        eprintln!("usage: pontoon-fuzz TARGET FILE…");
        return std::process::ExitCode::FAILURE;
    };
    for path in args {
        match std::fs::read(&path) {
            Ok(data) => (target.run)(&data),
            Err(error) => {
                eprintln!("{}: {error}", path.display());
                return std::process::ExitCode::FAILURE;
            }
        }
    }
    std::process::ExitCode::SUCCESS
}
