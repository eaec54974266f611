//! A whole Debian system with a network card, under the shim: an address for its own networkd by
//! DHCP, packages for its own apt, and its own sshd.

use crate::native::{Test, mark};
use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine};
use pontoon::image;
use pontoon::outcome::Status;
use pontoon_tests::dialogue::Dialogue;
use pontoon_tests::files;
use pontoon_tests::images::{Image, PATIENCE, Table};
use pontoon_tests::lab::{Lab, MEMORY_MIB, ended};
use pontoon_tests::net::{self, Network};
use pontoon_tests::parts::{self, Running, run};
use pontoon_tests::transcript::Transcript;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The tests that suites with an image have.
pub const TESTS: [(&str, Test); 2] = [("xen-debian", user), ("xen-debian-tap", tap)];

const SCRIPT: &str = include_str!("../../e2e/system-net.sh");
const LIMIT: Duration = Duration::from_secs(1200);
const NOISE_BYTES: u64 = 32 << 20;
const CONTROL: &str = "Package: pontoon-noise\nVersion: 1\nArchitecture: all\n\
    Maintainer: nobody <nobody@example.org>\nDescription: noise\n";

/// Files for a guest, and what is to come of them.
struct Offer {
    /// A directory with a package and its list.
    dir: PathBuf,
    /// Checksum of what is in the package.
    noise: String,
    /// A key for the guest's sshd.
    key: PathBuf,
}

impl Offer {
    fn new(lab: &mut Lab) -> Result<Self> {
        let (dir, tree, key) = (lab.file("mirror")?, lab.file("tree")?, lab.file("key")?);
        for made in [&dir, &tree] {
            let _ = fs::remove_dir_all(made);
        }
        let _ = fs::remove_file(&key);
        let (share, control) = (tree.join("usr/share"), tree.join("DEBIAN"));
        [&dir, &share, &control].into_iter().try_for_each(fs::create_dir_all)?;
        let noise = share.join("pontoon-noise");
        let mut source = File::open("/dev/urandom")?.take(NOISE_BYTES);
        io::copy(&mut source, &mut File::create(&noise)?)?;
        fs::write(control.join("control"), CONTROL)?;
        let package = dir.join("noise.deb");
        let mut build = Command::new("dpkg-deb");
        run(build.args(["-Znone", "--root-owner-group", "--build"]).arg(&tree).arg(&package))?;
        let size = fs::metadata(&package)?.len();
        let sum = first_word(&mut Command::new("sha256sum"), &package)?;
        let list = format!("{CONTROL}Filename: ./noise.deb\nSize: {size}\nSHA256: {sum}\n");
        fs::write(dir.join("Packages"), list)?;
        let noise = first_word(&mut Command::new("md5sum"), &noise)?;
        let mut keygen = Command::new("ssh-keygen");
        run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(&key))?;
        Ok(Self { dir, noise, key })
    }

    /// Logs in, and takes the noise out of the guest.
    fn fetch(&self, address: &str, port: u16) -> Result<()> {
        let mut ssh = Command::new("ssh");
        ssh.arg("-i").arg(&self.key).args(["-p", &port.to_string()]);
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "BatchMode=yes",
            "ConnectTimeout=120",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.arg(format!("root@{address}"));
        // Up, and down again.
        ssh.arg("md5sum >&2; cat /usr/share/pontoon-noise");
        let up = self.dir.join("noise.deb");
        let out = ssh.stdin(File::open(&up)?).stderr(Stdio::piped()).output().context("ssh")?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.success(), "ssh: {said}");
        let sent = first_word(&mut Command::new("md5sum"), &up)?;
        ensure!(said.starts_with(&sent), "another file went in: {said}");
        let down = self.dir.join("down");
        fs::write(&down, &out.stdout)?;
        let came = first_word(&mut Command::new("md5sum"), &down)?;
        ensure!(came == self.noise, "another file came out: {} bytes", out.stdout.len());
        Ok(())
    }
}

fn first_word(sum: &mut Command, of: &Path) -> Result<String> {
    let out = String::from_utf8(run(sum.arg(of))?)?;
    Ok(out.split(' ').next().unwrap_or_default().to_owned())
}

/// One start of the system; `net` is its card, `server` who has the packages, `at` where its sshd is
/// found if not at its own address.
fn life(
    lab: &mut Lab,
    suite: &str,
    net: &str,
    server: &str,
    at: Option<(&str, u16)>,
) -> Result<Transcript> {
    let mut image = Image::new(suite, Table::Gpt);
    image.packages.push("openssh-server".into());
    let (disk, script) = (lab.file("system.img")?, lab.file("script")?);
    image.copy(&disk)?;
    let dir = tempfile::tempdir()?;
    let files = image::take(&disk, None, Some(&format!("panic=-1 {PATIENCE}")), dir.path())?;
    let offer = Offer::new(lab)?;
    let port = files::serve(&offer.dir)?;
    let key = fs::read_to_string(offer.key.with_extension("pub"))?;
    let settings = format!("server={server} port={port} key='{}'\n", key.trim());
    parts::script_disk(&script, &(settings + SCRIPT))?;
    let mut machine = Machine::new(&files.kernel, files.initrd.as_deref(), &files.append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.disks = vec![disk.display().to_string(), format!("{},ro", script.display())];
    machine.nets.push(net.parse()?);
    let input = Input::default();
    let mut dialogue = Dialogue::login(&input, "sh /dev/xvdb");
    let (serving, served) = mpsc::channel::<String>();
    let (keyboard, place) = (input.clone(), at.map(|(host, port)| (host.to_owned(), port)));
    let caller = thread::spawn(move || {
        let result = served.recv().context("the guest never served").and_then(|address| {
            let own = || (address.split('/').next().unwrap_or_default().to_owned(), 22);
            let (host, port) = place.unwrap_or_else(own);
            offer.fetch(&host, port).map(|()| offer.noise.clone())
        });
        keyboard.send(b"\n");
        result
    });
    let (mut console, mut told) = (String::new(), false);
    let outcome = lab.run_with(&machine, &input, &mut |bytes| {
        dialogue.hear(bytes);
        console.push_str(&String::from_utf8_lossy(bytes));
        if !told && console.contains("@@ serving") {
            told = true;
            let line = |line: &str| line.trim().strip_prefix("@@ address ").map(str::to_owned);
            let _ = serving.send(console.lines().find_map(line).unwrap_or_default());
        }
    });
    drop(serving);
    let transcript = ended(&outcome?, Status::POWER_OFF)?;
    let noise = caller.join().map_err(|_| anyhow::anyhow!("the caller is gone"))??;
    fs::remove_file(disk)?;
    let log = transcript.log.as_ref().context("no kernel log")?;
    let complaints = net::complaints(log);
    ensure!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
    for (name, wanted) in
        [("state", "running"), ("apt", "0"), ("noise", &noise), ("sshd", "active"), ("lost", "0 0")]
    {
        let said = mark(&transcript, name)?;
        ensure!(said == wanted, "{name}: {said}, not {wanted}:\n{}", transcript.tail());
    }
    let nic = mark(&transcript, "nic")?;
    ensure!(nic == "eth0 vif" || nic == "enX0 vif", "another card: {nic}");
    Ok(transcript)
}

/// On user-mode networking, with a forwarded port.
fn user(lab: &mut Lab, suite: &str) -> Result<()> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let net = format!("user,hostfwd=tcp:127.0.0.1:{port}-:22");
    let transcript = life(lab, suite, &net, "10.0.2.2", Some(("127.0.0.1", port)))?;
    let address = mark(&transcript, "address")?;
    ensure!(address == "10.0.2.15/24", "another address: {address}");
    Ok(())
}

/// On a TAP.
fn tap(lab: &mut Lab, suite: &str) -> Result<()> {
    let network = Network::new()?;
    let prefix = format!("198.18.{}", network.number);
    let mut dhcp = Command::new("/usr/sbin/dnsmasq");
    dhcp.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--bind-interfaces"])
        .arg(format!("--interface={}", network.ifname))
        .arg(format!("--dhcp-range={prefix}.50,{prefix}.99,1h"))
        .arg(format!("--dhcp-leasefile={}", lab.file("leases")?.display()))
        .arg(format!("--log-facility={}", lab.file("dhcp-log")?.display()));
    let _dhcp = Running::start(&mut dhcp)?;
    let net = format!("tap,ifname={}", network.ifname);
    let transcript = life(lab, suite, &net, &format!("{prefix}.1"), None)?;
    let address = mark(&transcript, "address")?;
    ensure!(address.starts_with(&prefix), "another address: {address}");
    Ok(())
}
