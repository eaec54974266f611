//! What initramfs archives and disks of the tests are put together from: drivers of a
//! Debian kernel, programs of this machine.

use anyhow::{Context, Result, bail, ensure};
use pontoon::initramfs::Extra;
use pontoon::kernel::{Kernel, read_module};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Algorithms older kernels ask for by themselves, with a program an initramfs has
/// not; newer ones have them built in.
const ALGORITHMS: [&str; 2] = ["crc32c_generic", "crct10dif_generic"];

/// The modules `names` and what they need, as `modules/*.ko`, and `modules/list` in
/// the order of loading.
pub fn drivers(kernel: &Kernel, names: &[&str]) -> Result<Vec<Extra>> {
    let algorithms = ALGORITHMS.iter().filter_map(|name| kernel.modules(&[name]).ok()).flatten();
    let mut modules: Vec<PathBuf> = algorithms.collect();
    modules.extend(kernel.modules(names)?);
    let (mut extras, mut list, mut seen) = (Vec::new(), String::new(), BTreeSet::new());
    for module in modules.into_iter().filter(|module| seen.insert(module.clone())) {
        let file = module.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{}.ko", file.split(".ko").next().unwrap_or_default());
        extras.push(Extra { name: format!("modules/{name}"), data: read_module(&module)? });
        list.push_str(&format!("{name}\n"));
    }
    extras.push(Extra { name: "modules/list".into(), data: list.into_bytes() });
    Ok(extras)
}

/// Paths at which the loader looks for a program's libraries.
pub fn libraries_of(program: &str) -> Result<BTreeSet<PathBuf>> {
    let out = Command::new("ldd").arg(program).output().context("ldd")?;
    if !out.status.success() {
        bail!("ldd {program}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

/// Runs a program of this machine; what it printed.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("{program} cannot be run"))?;
    let said = [out.stdout.as_slice(), &out.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(out.status.success(), "{program} ({}):\n{}", out.status, said.trim());
    Ok(out.stdout)
}

/// A program of this machine that runs as long as this.
pub struct Running(Child);

impl Running {
    /// Starts it; nobody hears what it prints.
    pub fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("{program} cannot be run"))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A disk with a script on it, which a guest is told to run as it is.
pub fn script_disk(file: &Path, script: &str) -> Result<()> {
    let mut text = script.as_bytes().to_vec();
    // Kernels look for partition tables in the first sectors.
    text.resize(128 << 10, b'\n');
    fs::write(file, text).with_context(|| file.display().to_string())
}

/// An ext4 file system of `mib` in the file `image`, with `tree` in it.
pub fn ext4(image: &Path, mib: u64, tree: Option<&Path>) -> Result<()> {
    let mut command = Command::new("/sbin/mke2fs");
    command.args(["-q", "-F", "-t", "ext4"]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    run(command.arg(image).arg(format!("{mib}M"))).map(drop)
}

/// A disk to chroot into: a program of this machine with its libraries.
pub fn program_disk(image: &Path, program: &str) -> Result<()> {
    programs_disk(image, &[program], &[])
}

/// The same with several programs, and files of other contents.
pub fn programs_disk(image: &Path, programs: &[&str], more: &[(String, Vec<u8>)]) -> Result<()> {
    let tree = tempfile::tempdir()?;
    let mut files = BTreeSet::new();
    for program in programs {
        files.extend(libraries_of(program)?);
        files.insert(program.into());
    }
    let mut bytes = 0;
    for (name, data) in more {
        let to = tree.path().join(name);
        fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        fs::write(to, data)?;
        bytes += data.len() as u64;
    }
    for file in files {
        let to = tree.path().join(file.strip_prefix("/").unwrap_or(&file));
        fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        bytes += fs::copy(&file, to).with_context(|| file.display().to_string())?;
    }
    for dir in ["dev", "proc", "sys", "tmp"] {
        fs::create_dir(tree.path().join(dir))?;
    }
    ext4(image, (bytes >> 20) * 5 / 4 + 16, Some(tree.path()))
}
