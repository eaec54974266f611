//! Debian's kernels, unmodified, out of their packages.

use crate::apt::Suite;
use crate::cache;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel package, unpacked in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Version as in `uname -r`.
    pub release: String,
    /// Version of the package.
    pub version: String,
    suite: String,
    dir: PathBuf,
}

/// Suites whose kernels the tests run, oldest first.
pub const SUITES: [&str; 6] =
    ["bullseye", "bookworm", "trixie", "forky", "sid", "bookworm-backports"];

/// Whether `spec` names a kernel of Debian rather than a file: a suite, or
/// `suite:release` for one of its older kernels.
#[must_use]
pub fn is_suite(spec: &str) -> bool {
    SUITES.contains(&spec.split(':').next().unwrap_or_default())
}

/// The suite of the machine itself if it is one we know, else bookworm.
#[must_use]
pub fn machine_suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let own = text.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    if SUITES.contains(&own) { own.to_owned() } else { "bookworm".to_owned() }
}

impl Kernel {
    /// The kernel `spec` names, fetched if it is not in the cache. A kernel that
    /// is there is used for a day without asking whether a newer one is out.
    pub fn get(spec: &str) -> Result<Self> {
        let (name, wanted) = match spec.split_once(':') {
            Some((suite, release)) if release.ends_with("-amd64") => {
                (suite, Some(release.to_owned()))
            }
            Some((suite, release)) => (suite, Some(format!("{release}-amd64"))),
            None => (spec, None),
        };
        let _lock = cache::lock("kernels")?;
        let suite = Suite::open(name)?;
        let release = match wanted {
            Some(release) => release,
            None => current_release(&suite, spec)?,
        };
        // Since 2026 the image package is a shell around linux-binary-* and linux-modules-*.
        let binary = format!("linux-binary-{release}");
        let image = format!("linux-image-{release}");
        let (package, version) = match suite.version(&binary)? {
            Some(version) => (binary, version),
            None => match suite.version(&image)? {
                Some(version) => (image, version),
                None => bail!("the suite of \"{spec}\" has no kernel {release}"),
            },
        };
        let dir = cache::dir()?.join("kernels").join(format!("{release}_{version}"));
        cache::filled(&dir, |work| suite.unpack(&package, work))?;
        Ok(Self { release, version, suite: name.to_owned(), dir })
    }

    /// The kernel image.
    pub fn vmlinuz(&self) -> Result<PathBuf> {
        let places = [
            self.dir.join(format!("boot/vmlinuz-{}", self.release)),
            self.dir.join(format!("usr/lib/modules/{}/vmlinuz", self.release)),
        ];
        places
            .into_iter()
            .find(|p| p.exists())
            .with_context(|| format!("the package of {} has no vmlinuz", self.release))
    }

    /// The kernel as ELF file, taken out of the image once: boots faster where
    /// the processor is emulated.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let _lock = cache::lock("kernels")?;
        let path = self.dir.join("vmlinux");
        if !path.exists() {
            let elf = unpack_bzimage(&fs::read(self.vmlinuz()?)?)?;
            let part = self.dir.join("vmlinux.part");
            fs::write(&part, elf)?;
            fs::rename(part, &path)?;
        }
        Ok(path)
    }

    /// Files of the modules `names` and of all they need, in loading order.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut all = self.modules_in(&self.dir)?;
        if all.is_empty() {
            all = self.modules_in(&self.modules_package()?)?;
        }
        let mut ordered = Vec::new();
        for name in names {
            self.add_module(name, &all, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn modules_in(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for root in ["lib/modules", "usr/lib/modules"] {
            collect_modules(&dir.join(root).join(&self.release).join("kernel"), &mut all)?;
        }
        Ok(all)
    }

    /// The package of the modules where it is one of its own, fetched when first asked for: a
    /// kernel alone boots without.
    fn modules_package(&self) -> Result<PathBuf> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let dir = self.dir.with_file_name(format!("{name}_modules"));
        if dir.exists() {
            return Ok(dir);
        }
        let _lock = cache::lock("kernels")?;
        let suite = Suite::open(&self.suite)?;
        let package = format!("linux-modules-{}", self.release);
        let version = suite.version(&package)?;
        let version = version.with_context(|| format!("kernel {} has no modules", self.release))?;
        if version != self.version {
            bail!("{package} is of version {version}, the kernel of {}", self.version);
        }
        cache::filled(&dir, |work| suite.unpack(&package, work))?;
        Ok(dir)
    }

    fn add_module(&self, name: &str, all: &[PathBuf], ordered: &mut Vec<PathBuf>) -> Result<()> {
        let wanted = name.replace('-', "_");
        let path = all.iter().find(|p| module_name(p) == wanted);
        let path = path.with_context(|| format!("kernel {} has no module {name}", self.release))?;
        if ordered.contains(path) {
            return Ok(());
        }
        for needed in module_depends(&read_module(path)?) {
            self.add_module(&needed, all, ordered)?;
        }
        ordered.push(path.clone());
        Ok(())
    }
}

fn current_release(suite: &Suite, spec: &str) -> Result<String> {
    let depends = suite.depends("linux-image-amd64")?;
    let image = depends.iter().find_map(|d| d.strip_prefix("linux-image-"));
    Ok(image.with_context(|| format!("the suite \"{spec}\" has no linux-image-amd64"))?.to_owned())
}

fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn collect_modules(dir: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() {
            collect_modules(&path, all)?;
        } else if path.file_name().is_some_and(|n| n.to_string_lossy().contains(".ko")) {
            all.push(path);
        }
    }
    Ok(())
}

/// A module's ELF file; newer packages have it compressed.
pub fn read_module(path: &Path) -> Result<Vec<u8>> {
    let data = fs::read(path).with_context(|| path.display().to_string())?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => pipe_through("xz", &["-dc"], &data),
        Some("zst") => pipe_through("zstd", &["-dcq"], &data),
        _ => Ok(data),
    }
}

/// The `depends=` list of a module.
fn module_depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|w| w == key) else { return Vec::new() };
    let list = module.get(at + key.len()..).unwrap_or_default();
    let end = list.iter().position(|&b| b == 0).unwrap_or(0);
    let text = String::from_utf8_lossy(list.get(..end).unwrap_or_default()).into_owned();
    text.split(',').filter(|d| !d.is_empty()).map(str::to_owned).collect()
}

/// Takes the ELF file out of a bzImage.
pub fn unpack_bzimage(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Option<usize> {
        let bytes: [u8; 4] = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("not a bzImage");
    }
    // A header with zero set-up sectors means four (boot protocol, setup_sects).
    let sectors = image.get(0x1f1).map(|&s| if s == 0 { 4 } else { usize::from(s) });
    let payload = (|| {
        let start = (sectors? + 1) * 512 + word(0x248)?;
        image.get(start..start.checked_add(word(0x24c)?)?)
    })();
    let payload = payload.context("bzImage cut short")?;
    let (program, args): (&str, &[&str]) = match payload {
        [0xfd, b'7', b'z', ..] => ("xz", &["-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dcq", "--no-check"]),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        [0x02, 0x21, ..] => ("lz4", &["-dc"]),
        _ => bail!("kernel compressed in a way unknown here"),
    };
    let elf = pipe_through(program, args, payload)?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("{program} gave no ELF file");
    }
    Ok(elf)
}

/// Runs a filter. Its complaints about bytes behind the data are not ours: the
/// kernel appends the unpacked size.
pub fn pipe_through(program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile()?;
    file.write_all(input)?;
    file.rewind()?;
    let out = Command::new(program)
        .args(args)
        .stdin(file)
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_dependencies_are_read() {
        assert_eq!(module_depends(b"x\0license=GPL\0depends=kvm,ccp\0name=y\0"), ["kvm", "ccp"]);
        assert!(module_depends(b"x\0depends=\0name=y\0").is_empty());
        assert!(module_depends(b"").is_empty());
    }

    #[test]
    fn modules_are_found_in_either_package() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let kernel = |name: &str| Kernel {
            release: "7.2-amd64".into(),
            version: "7.2-1".into(),
            // What is not in the cache is not to be found in a suite of that name.
            suite: "../no suite".into(),
            dir: dir.path().join(name),
        };
        put("whole/lib/modules/7.2-amd64/kernel/a/fs-one.ko", "\0depends=two\0");
        put("whole/lib/modules/7.2-amd64/kernel/b/two.ko", "\0depends=\0");
        put("shell/usr/lib/modules/7.2-amd64/vmlinuz", "");
        put("shell_modules/usr/lib/modules/7.2-amd64/kernel/c/fs_one.ko", "\0depends=\0");
        put("lone/boot/vmlinuz-7.2-amd64", "");
        let names = |kernel: &Kernel| {
            let found = kernel.modules(&["fs_one"])?;
            let name = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
            Ok::<_, anyhow::Error>(found.iter().map(name).collect::<Vec<_>>())
        };
        assert_eq!(names(&kernel("whole")).unwrap(), ["two.ko", "fs-one.ko"]);
        assert_eq!(names(&kernel("shell")).unwrap(), ["fs_one.ko"]);
        assert!(names(&kernel("lone")).is_err());
    }

    #[test]
    fn broken_images_are_refused() {
        assert!(unpack_bzimage(b"").is_err());
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x250].fill(0xff);
        assert!(unpack_bzimage(&image).is_err());
    }
}
