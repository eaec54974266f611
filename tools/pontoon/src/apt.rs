//! Debian packages through a private apt configuration.
//!
//! The machine's own apt (its lists, its state, its installed packages) is left
//! alone: apt gets directories of ours and sources made from the mirror the
//! machine already uses, for the suite asked for. Signatures are checked with
//! Debian's keyring. The machine's `Acquire` settings (proxies and the like)
//! are kept.

use crate::cache;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Lists older than this are fetched anew before a package is looked up.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// One Debian suite, seen through a private apt.
pub struct Suite {
    name: String,
    dir: PathBuf,
}

/// Mirrors as the machine's own sources name them.
struct Mirrors {
    main: String,
    security: String,
}

impl Suite {
    /// Prepares the suite `name` ("bookworm", "sid", …); fetches its lists when
    /// they are missing or older than a day.
    pub fn open(name: &str) -> Result<Self> {
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') || name.is_empty() {
            bail!("\"{name}\" is not the name of a Debian suite");
        }
        if !Path::new(KEYRING).exists() {
            bail!(
                "{KEYRING} is missing: packages are fetched on Debian only; give --kernel and --initrd instead"
            );
        }
        let dir = cache::dir()?.join("apt").join(name);
        let suite = Self { name: name.to_owned(), dir };
        suite.configure()?;
        let stamp = suite.dir.join("updated");
        let fresh =
            fs::metadata(&stamp).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if fresh.is_none_or(|age| age > LISTS_FRESH) {
            suite.update()?;
            fs::write(stamp, "")?;
        }
        Ok(suite)
    }

    fn configure(&self) -> Result<()> {
        for sub in ["lists/partial", "state", "archives/partial", "etc/preferences.d"] {
            fs::create_dir_all(self.dir.join(sub))?;
        }
        let mirrors = machine_mirrors();
        let by = format!("[signed-by={KEYRING}]");
        let mut sources = format!("deb {by} {} {} main\n", mirrors.main, self.name);
        if !matches!(self.name.as_str(), "sid" | "unstable") {
            sources
                .push_str(&format!("deb {by} {} {}-security main\n", mirrors.security, self.name));
        }
        fs::write(self.dir.join("sources.list"), sources)?;
        let status = self.dir.join("status");
        if !status.exists() {
            fs::write(status, "")?;
        }
        let dir = self.dir.display();
        let mut conf = format!(
            "Dir::Etc::sourcelist \"{dir}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::Etc::parts \"-\";\nDir::Etc::main \"-\";\nDir::Etc::preferences \"-\";\n\
             Dir::Etc::preferencesparts \"{dir}/etc/preferences.d\";\n\
             Dir::State \"{dir}/state\";\nDir::State::lists \"{dir}/lists\";\nDir::State::status \"{dir}/status\";\n\
             Dir::Cache \"{dir}\";\nDir::Cache::archives \"{dir}/archives\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
        );
        // Dropping the machine's hooks but not its way to the network.
        conf.push_str(&acquire_settings());
        fs::write(self.dir.join("apt.conf"), conf)?;
        Ok(())
    }

    /// The file of sources apt is given.
    #[must_use]
    pub fn sources(&self) -> PathBuf {
        self.dir.join("sources.list")
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }

    fn update(&self) -> Result<()> {
        let mut command = self.tool("apt-get");
        command.args(["update", "-q", "-o", "APT::Status-Fd=1"]);
        with_progress(command, &format!("package lists of {}", self.name))
    }

    /// The version of `package` the suite has now; `None` if it has none.
    pub fn version(&self, package: &str) -> Result<Option<String>> {
        Ok(self.field(package, "Version")?.into_iter().next())
    }

    /// Packages the newest version of `package` depends on, names only.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let Some(line) = self.field(package, "Depends")?.into_iter().next() else {
            return Ok(Vec::new());
        };
        Ok(line.split(',').filter_map(|d| d.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// All of `field` in the versions of `package`, newest first.
    fn field(&self, package: &str, field: &str) -> Result<Vec<String>> {
        let out = self.tool("apt-cache").args(["show", package]).output().context("apt-cache")?;
        let prefix = format!("{field}: ");
        let text = String::from_utf8_lossy(&out.stdout);
        Ok(text.lines().filter_map(|l| l.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    /// Downloads `package` and unpacks its files below `into`.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let work = tempfile::Builder::new().prefix("deb-").tempdir_in(&self.dir)?;
        let mut command = self.tool("apt-get");
        command
            .args(["download", "-q", "-o", "APT::Status-Fd=1", package])
            .current_dir(work.path());
        with_progress(command, package)?;
        let deb = fs::read_dir(work.path())?
            .filter_map(|e| Some(e.ok()?.path()))
            .find(|p| p.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("apt-get gave no package file for {package}"))?;
        let done =
            Command::new("dpkg-deb").arg("-x").arg(&deb).arg(into).output().context("dpkg-deb")?;
        if !done.status.success() {
            bail!("cannot unpack {package}: {}", last_line(&done.stderr));
        }
        Ok(())
    }
}

/// The machine's `Acquire` settings, proxies and the like, as apt's settings are
/// written.
#[must_use]
pub fn acquire_settings() -> String {
    let Ok(dump) = Command::new("apt-config").arg("dump").output() else { return String::new() };
    let ours =
        |line: &&str| line.starts_with("Acquire::") && !line.starts_with("Acquire::Languages");
    let text = String::from_utf8_lossy(&dump.stdout);
    text.lines().filter(ours).map(|line| format!("{line}\n")).collect()
}

fn last_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .lines()
        .rfind(|l| !l.trim().is_empty())
        .unwrap_or("no message")
        .to_owned()
}

/// Runs an apt command that reports to its standard output, with a bar.
fn with_progress(mut command: Command, what: &str) -> Result<()> {
    let bar = if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("pontoon: fetching {msg} [{bar:30}] {percent}%")?
            .progress_chars("=> ");
        ProgressBar::new(100).with_style(style).with_message(what.to_owned())
    } else {
        crate::say(format!("fetching {what}"));
        ProgressBar::hidden()
    };
    let errors = tempfile::tempfile()?;
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(errors.try_clone()?)
        .spawn()
        .context("apt-get cannot be run")?;
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines() {
            // dlstatus:<item>:<percent>:<text>
            let line = line?;
            let percent = line
                .strip_prefix("dlstatus:")
                .and_then(|l| l.split(':').nth(1))
                .and_then(|p| p.parse::<f64>().ok());
            if let Some(percent) = percent {
                // A percentage: fits, and a wrong one only draws a wrong bar.
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "0 to 100"
                )]
                bar.set_position(percent as u64);
            }
        }
    }
    let status = child.wait()?;
    bar.finish_and_clear();
    if !status.success() {
        use std::io::{Read, Seek};
        let mut errors = errors;
        errors.rewind()?;
        let mut text = String::new();
        errors.read_to_string(&mut text)?;
        let why = text.lines().find_map(|l| l.strip_prefix("E: ")).unwrap_or("no reason given");
        bail!("cannot fetch {what}: {why}");
    }
    Ok(())
}

/// The mirrors of the machine's own Debian sources, Debian's public ones where
/// it has none.
fn machine_mirrors() -> Mirrors {
    let mut uris = Vec::new();
    let parts =
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path());
    for path in parts.chain([PathBuf::from("/etc/apt/sources.list")]) {
        let text = fs::read_to_string(path).unwrap_or_default();
        uris.extend(source_uris(&text));
    }
    let find = |end: &str| uris.iter().find(|u| u.trim_end_matches('/').ends_with(end)).cloned();
    let main = find("/debian").unwrap_or_else(|| "http://deb.debian.org/debian".into());
    let security =
        find("/debian-security").unwrap_or_else(|| "http://deb.debian.org/debian-security".into());
    Mirrors { main, security }
}

/// URIs in a sources file of either style.
fn source_uris(text: &str) -> Vec<String> {
    let mut uris = Vec::new();
    for line in text.lines() {
        let words = match line.strip_prefix("URIs:") {
            Some(rest) => rest,
            None if line.starts_with("deb ") => line,
            None => continue,
        };
        uris.extend(words.split_whitespace().filter(|w| w.contains("://")).map(str::to_owned));
    }
    uris
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_of_sources_are_read() {
        let deb822 = "Types: deb\n# http://old.example/debian\nURIs: http://a.example/debian\nSuites: bookworm\n";
        assert_eq!(source_uris(deb822), ["http://a.example/debian"]);
        let line = "# deb http://no.example/debian x main\ndeb [arch=amd64] https://b.example/debian bookworm main\n";
        assert_eq!(source_uris(line), ["https://b.example/debian"]);
    }

    #[test]
    fn odd_suite_names_are_refused() {
        assert!(Suite::open("../x").is_err());
        assert!(Suite::open("").is_err());
    }
}
