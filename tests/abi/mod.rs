//! Compares our wire types with C headers: sizes, offsets, constants.
//!
//! A table ([`Table`]) names for every Rust structure its C type and for every field its C
//! designator. From it comes a C program that prints what the C compiler makes of them, and the
//! two lists are compared. The C headers are an independent judge: a layout that is wrong on
//! both sides of our own code would agree with itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub mod blkif;
pub mod grant_table;
pub mod hyperv;
pub mod netif;
pub mod rndis;
pub mod vmbus;
pub mod xen;
pub mod xenstore;

/// A number both sides have.
struct Entry {
    /// What the Rust side calls it.
    rust: String,
    /// A C expression.
    c: String,
    value: u64,
}

/// What to compare.
#[derive(Default)]
pub struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// Adds a number.
    pub fn add(&mut self, rust: impl Into<String>, c: impl Into<String>, value: u64) {
        self.entries.push(Entry { rust: rust.into(), c: c.into(), value });
    }

    /// Adds a structure's size.
    pub fn structure(&mut self, rust: &str, c: &str, size: usize) {
        self.add(format!("size of {rust}"), format!("sizeof({c})"), size as u64);
    }

    /// Adds a field's offset and size.
    pub fn field(&mut self, rust: &str, c: &str, name: (&str, &str), offset: usize, size: usize) {
        let (field, member) = name;
        let offsetof = format!("__builtin_offsetof({c}, {member})");
        self.add(format!("offset of {rust}.{field}"), offsetof, offset as u64);
        let sizeof = format!("sizeof((({c} *)0)->{member})");
        self.add(format!("size of {rust}.{field}"), sizeof, size as u64);
    }

    /// Whether anything of this name is compared.
    pub fn has(&self, rust: &str) -> bool {
        self.entries.iter().any(|entry| entry.rust == rust)
    }

    /// Compiles and runs the C side; the differences.
    ///
    /// # Panics
    /// When the program does not compile: a header is missing, or a name in the table is.
    pub fn differences(&self, prelude: &str, include: &[PathBuf]) -> Vec<String> {
        let mut source = format!("#include <stdio.h>\n{prelude}\nint main(void) {{\n");
        for (index, entry) in self.entries.iter().enumerate() {
            let line = "printf(\"%llu\\n\", (unsigned long long)";
            writeln!(source, "#line {} \"table\"\n{line}({}));", index + 1, entry.c)
                .expect("a string takes it");
        }
        source.push_str("return 0; }\n");
        let output = compile_and_run(&source, include);
        let values: Vec<u64> =
            output.lines().map(|line| line.parse().expect("the program prints numbers")).collect();
        assert_eq!(values.len(), self.entries.len());
        let differs = self.entries.iter().zip(values).filter(|(entry, c)| entry.value != *c);
        differs
            .map(|(entry, c)| {
                format!("{}: {:#x}, but {} is {c:#x}", entry.rust, entry.value, entry.c)
            })
            .collect()
    }
}

fn compile_and_run(source: &str, include: &[PathBuf]) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (c, program) = (dir.path().join("abi.c"), dir.path().join("abi"));
    std::fs::write(&c, source).expect("the program is written");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-w", "-o"]).arg(&program).arg(&c);
    for dir in include {
        cc.arg("-I").arg(dir);
    }
    let compiled = cc.output().expect("cc runs (package gcc)");
    let errors = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "the C side does not compile:\n{errors}");
    let ran = Command::new(&program).output().expect("the program runs");
    assert!(ran.status.success());
    String::from_utf8(ran.stdout).expect("numbers are text")
}

/// The size of a field's type.
pub const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Adds structures: `Rust = "C" { field, field = "C member", .. }`.
macro_rules! structures {
    ($table:expr; $($rust:ident = $c:literal { $($field:ident $(= $member:literal)?),* $(,)? })*) => {
        $(
            $table.structure(stringify!($rust), $c, size_of::<$rust>());
            $(
                $table.field(
                    stringify!($rust),
                    $c,
                    (stringify!($field), [$($member,)? stringify!($field)][0]),
                    core::mem::offset_of!($rust, $field),
                    crate::abi::size_of_field::<$rust, _>(|t| &t.$field),
                );
            )*
        )*
    };
}

/// Adds constants of a newtype: `Type, "C_PREFIX_", { NAME, NAME = "C name", .. }`; the C name is
/// the prefix and the name, as `$case` writes it.
macro_rules! codes {
    ($table:expr; $type:ident, $prefix:literal, $case:ident { $($name:ident $(= $c:literal)?),* $(,)? }) => {
        $(
            let c: Option<&str> = [$(Some($c),)? None][0];
            let c = c.map_or_else(
                || format!("{}{}", $prefix, stringify!($name).$case()),
                str::to_owned,
            );
            $table.add(
                concat!(stringify!($type), "::", stringify!($name)),
                c,
                i64::from($type::$name.0) as u64,
            );
        )*
    };
}

/// Adds constants: `path::NAME = "C expression"`.
macro_rules! constants {
    ($table:expr; $($($path:ident)::+ = $c:literal),* $(,)?) => {
        $(
            #[allow(clippy::unnecessary_cast, reason = "constants of several widths")]
            $table.add(concat!($("::", stringify!($path)),+), $c, $($path)::+ as u64);
        )*
    };
}

pub(crate) use {codes, constants, structures};

/// What the sources of a crate declare: `repr(C)` structures, and constants of newtypes as
/// `Type::NAME`.
pub fn declared(crate_dir: &Path) -> (Vec<String>, Vec<String>) {
    let (mut structures, mut codes) = (Vec::new(), Vec::new());
    for file in sources(&crate_dir.join("src")) {
        let text = std::fs::read_to_string(&file).expect("a source file");
        let mut repr_c = false;
        let mut implementing = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("pub struct ") {
                let name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                if repr_c {
                    structures.push(name.to_owned());
                }
                repr_c = false;
            } else if line == "#[repr(C)]" {
                repr_c = true;
            } else if let Some(rest) = line.strip_prefix("impl ") {
                implementing = rest.trim_end_matches(" {").to_owned();
            } else if let Some(rest) = line.trim_start().strip_prefix("pub const ")
                && let Some((name, _)) = rest.split_once(": Self = Self(")
                && !name.starts_with('$')
            {
                codes.push(format!("{implementing}::{name}"));
            }
        }
    }
    (structures, codes)
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a source directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_owned()
}
