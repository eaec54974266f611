//! Debian's kernel with its hv_netvsc on hvhost.

use anyhow::{Context, Result, ensure};
use hvhost::net::NetOptions;
use hvhost::stats::Report;
use pontoon::host::{Input, Machine};
use pontoon::kernel::Kernel;
use pontoon::outcome::{Outcome, Status};
use pontoon_tests::lab::{Lab, ended};
use pontoon_tests::net::{self, Network};
use pontoon_tests::traffic::{self, Direction};
use pontoon_tests::transcript::Transcript;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Eight processors take minutes on a quiet machine with two, emulated twice.
const LIMIT: Duration = Duration::from_secs(1200);
const MAC: &str = "00:15:5d:12:34:56";

/// A test.
pub type Test = fn(&mut Lab, &str) -> Result<()>;

/// The tests every kernel has.
pub const TESTS: [(&str, Test); 5] =
    [("tap", tap), ("wire", wire), ("vlan", vlan), ("user", user), ("queues", queues)];

/// A guest that does `test`, with the drivers that `initramfs` puts in, on this console.
pub fn prepared(
    lab: &mut Lab,
    spec: &str,
    test: &str,
    initramfs: fn(&Kernel) -> Result<Vec<u8>>,
    console: &str,
) -> Result<Machine> {
    let kernel = Kernel::get(spec)?;
    let initrd = lab.file("net-initrd")?;
    fs::write(&initrd, initramfs(&kernel)?)?;
    let append = format!("console={console} quiet panic=-1 pontoon_test={test}");
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd), &append);
    machine.timeout = Some(LIMIT);
    machine.stats = true;
    Ok(machine)
}

/// A guest that does `test` with these networks.
fn guest(lab: &mut Lab, spec: &str, test: &str, nets: &[String]) -> Result<Machine> {
    let mut machine = prepared(lab, spec, test, net::initramfs, "ttyS0")?;
    machine.nets = nets.iter().map(|net| net.parse()).collect::<Result<Vec<NetOptions>>>()?;
    Ok(machine)
}

pub fn mark<'a>(transcript: &'a Transcript, name: &str) -> Result<&'a str> {
    let mark = transcript.mark(name);
    mark.with_context(|| format!("nothing about {name}:\n{}", transcript.tail()))
}

/// It ran to its end, found nothing wrong, and its kernel had nothing to say about networks;
/// what it said and what hvhost counted.
fn good(outcome: &Outcome) -> Result<(Transcript, Report)> {
    let transcript = ended(outcome, Status::RESET)?;
    let failed: Vec<_> = transcript.text.lines().filter(|l| l.contains("@@ failed")).collect();
    let (failed, tail, host) = (failed.join("\n"), transcript.tail(), &outcome.errors);
    ensure!(failed.is_empty(), "{failed}\nconsole:\n{tail}\nhost:\n{host}");
    ensure!(transcript.mark("end").is_some(), "no end:\n{}", transcript.tail());
    if transcript.text.contains("pontoon: memory:") {
        // Cards that come and go while processors work take the most of it.
        let (used, bytes) = transcript.stack().context("nothing is said of ring 0's stacks")?;
        ensure!(used <= bytes / 4 * 3, "{used} bytes of a stack of {bytes} were used");
    }
    let log = transcript.log.as_ref().context("no kernel log")?;
    let complaints = net::complaints(log);
    ensure!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
    let report: Report = serde_json::from_str(outcome.stats.as_deref().context("no counters")?)?;
    let nic = report.nics.get("net0").context("no adapter was counted")?;
    ensure!(nic.sent_malformed == 0, "packets made no sense: {nic:?}");
    for (name, channel) in &report.channels {
        ensure!(channel.malformed == 0, "{name}: {channel:?}");
    }
    // The guest's own tables have names first, then values.
    let errors = mark(&transcript, "errors")?.replace(';', "\n");
    ensure!(net::wrong_sums(&errors) == 0, "wrong checksums in the guest:\n{errors}");
    Ok((transcript, report))
}

/// Everything a guest does with an adapter on a TAP, offloads going through to this
/// machine's kernel.
fn tap(lab: &mut Lab, spec: &str) -> Result<()> {
    let network = Network::new()?;
    let net = format!("tap,ifname={},mac={MAC},mtu=9000", network.ifname);
    let (transcript, report) = whole(lab, spec, "whole", &net, &network, "")?;
    ensure!(mark(&transcript, "mac")? == MAC, "another address");
    let features = mark(&transcript, "features")?;
    for feature in [
        "rx-checksumming=on",
        "tx-checksum-ipv4=on",
        "tx-checksum-ipv6=on",
        "tx-tcp-segmentation=on",
        "tx-tcp6-segmentation=on",
        "rx-vlan-offload=on",
        "tx-vlan-offload=on",
        "receive-hashing=on",
    ] {
        ensure!(features.contains(feature), "{feature} is missing: {features}");
    }
    ensure!(mark(&transcript, "speed")? == "10000", "{}", mark(&transcript, "speed")?);
    ensure!(mark(&transcript, "mtu")? == "9000", "{}", mark(&transcript, "mtu")?);
    ensure!(mark(&transcript, "second")?.starts_with("00:15:5d"), "no second adapter");
    let nic = &report.nics["net0"];
    ensure!(nic.sent_large > 100 && nic.sent_checksum > 100, "no offloads: {nic:?}");
    Ok(())
}

/// The same with frames as they are on a wire, and with a VLAN on it: checksums and segments
/// made by hvhost, and looked at by this machine's kernel.
fn wire(lab: &mut Lab, spec: &str) -> Result<()> {
    switched(lab, spec, "whole", false)
}

/// A VLAN, offloads going through.
fn vlan(lab: &mut Lab, spec: &str) -> Result<()> {
    switched(lab, spec, "vlan", true)
}

fn switched(lab: &mut Lab, spec: &str, test: &str, offload: bool) -> Result<()> {
    let network = Network::new()?;
    let socket = lab.file("switch.sock")?;
    let tagged = network.switch(&socket, offload)?;
    let switch = if offload { "on" } else { "off" };
    let net = format!("socket,path={},offload={switch},mac={MAC},mtu=9000", socket.display());
    let (_, report) = whole(lab, spec, test, &net, &network, " pontoon_vlan=5")?;
    ensure!(tagged.load(Ordering::Relaxed) > 100, "hardly a frame had a tag");
    let nic = &report.nics["net0"];
    ensure!(nic.sent_large > 10 && nic.sent_checksum > 10, "no offloads: {nic:?}");
    Ok(())
}

fn whole(
    lab: &mut Lab,
    spec: &str,
    test: &str,
    net: &str,
    network: &Network,
    more: &str,
) -> Result<(Transcript, Report)> {
    // Nobody speaks at the other end of this one.
    let socket = lab.file("second.sock")?;
    let _ = fs::remove_file(&socket);
    let _second = std::os::unix::net::UnixListener::bind(&socket)?;
    let second = format!("socket,path={},detached", socket.display());
    let mut machine = guest(lab, spec, test, &[net.to_owned(), second])?;
    machine.append.push_str(&place(network));
    machine.append.push_str(more);
    for at in [
        "@@ link-down=net-link 0 down",
        "@@ link-up=net-link 0 up",
        "@@ attach=net-attach 1",
        "@@ remove=net-remove 1",
        "@@ reoffer=net-reoffer 0",
    ] {
        machine.more.extend(["--at".into(), at.into()]);
    }
    on_tap(lab, &machine, network, Lab::run_as_is)
}

/// Runs a guest that talks to this machine, and says when packets are to be larger; what it said,
/// and what was counted.
pub fn on_tap(
    lab: &mut Lab,
    machine: &Machine,
    network: &Network,
    run: Run,
) -> Result<(Transcript, Report)> {
    let before = net::checksum_errors()?;
    let (mut console, mut told, mut sizes) = (String::new(), 0, Ok(()));
    let outcome = run(lab, machine, &Input::default(), &mut |bytes| {
        console.push_str(&String::from_utf8_lossy(bytes));
        let asked = console.lines().filter_map(|line| line.strip_prefix("@@ peer-mtu "));
        // The last line may be half there.
        let whole = asked.filter(|mtu| mtu.len() == 4).skip(told);
        for mtu in whole.map(str::to_owned).collect::<Vec<_>>() {
            told += 1;
            sizes = std::mem::replace(&mut sizes, Ok(())).and(network.set_mtu(mtu.trim()));
        }
    })?;
    sizes?;
    let result = good(&outcome)?;
    let wrong = net::checksum_errors()? - before;
    ensure!(wrong == 0, "{wrong} packets came here with wrong checksums");
    Ok(result)
}

/// Words that tell the guest of its network.
pub fn place(network: &Network) -> String {
    format!(" pontoon_net={} pontoon_port={}", network.number, network.port)
}

/// A channel for each of eight processors, all of them used both ways.
fn queues(lab: &mut Lab, spec: &str) -> Result<()> {
    let network = Network::new()?;
    let tap = format!("tap,ifname={}", network.ifname);
    let mut machine = guest(lab, spec, "queues", &[tap])?;
    machine.append.push_str(&place(&network));
    machine.cpus = 8;
    machine.memory_mib = 1024;
    let outcome = lab.run_as_is(&machine, &Input::default(), &mut |_| {})?;
    let (transcript, report) = good(&outcome)?;
    ensure!(mark(&transcript, "queues")? == "8", "{}", mark(&transcript, "queues")?);
    all_channels_used(&report, 8)
}

/// There are so many channels, and each took bytes both ways.
pub fn all_channels_used(report: &Report, count: usize) -> Result<()> {
    ensure!(report.channels.len() == count, "channels: {:?}", report.channels);
    for (name, channel) in &report.channels {
        let used = channel.bytes_read > 10_000 && channel.bytes_written > 10_000;
        ensure!(used, "{name} was hardly used: {:?}", report.channels);
    }
    Ok(())
}

/// An address by DHCP, traffic to this machine, and from it through a forwarded port.
fn user(lab: &mut Lab, spec: &str) -> Result<()> {
    let machine = guest(lab, spec, "user", &[])?;
    on_user_network(lab, &machine, Lab::run_as_is).map(drop)
}

/// How a lab runs a machine.
pub type Run = fn(&mut Lab, &Machine, &Input, &mut dyn FnMut(&[u8])) -> Result<Outcome>;

/// Runs a guest that does `user` on a network of its own; what it said, and what was counted.
pub fn on_user_network(lab: &mut Lab, machine: &Machine, run: Run) -> Result<(Transcript, Report)> {
    let port = traffic::serve(0)?;
    let forwarded = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let net = format!("user,hostfwd=tcp:127.0.0.1:{forwarded}-:4000");
    let mut machine = machine.clone();
    machine.nets.push(net.parse()?);
    machine.append.push_str(&format!(" pontoon_net=0 pontoon_port={port}"));
    let input = Input::default();
    let (serving, wanted) = mpsc::channel();
    let keyboard = input.clone();
    let caller = thread::spawn(move || -> Result<()> {
        let result = wanted.recv().context("the guest never served").and_then(|()| {
            let to: SocketAddr = (Ipv4Addr::LOCALHOST, forwarded).into();
            for direction in [Direction::Down, Direction::Up] {
                traffic::tcp_many(to, direction, 300_000, 4).context("through the port")?;
            }
            Ok(())
        });
        keyboard.send(b"\n");
        result
    });
    let mut console = String::new();
    let outcome = run(lab, &machine, &input, &mut |bytes| {
        let before = console.contains("@@ serving");
        console.push_str(&String::from_utf8_lossy(bytes));
        if !before && console.contains("@@ serving") {
            let _ = serving.send(());
        }
    });
    drop(serving);
    let (transcript, report) = good(&outcome?)?;
    caller.join().map_err(|_| anyhow::anyhow!("the caller is gone"))??;
    let leased = mark(&transcript, "leased")?;
    ensure!(leased == "10.0.2.15 10.0.2.2", "address and router: {leased}");
    Ok((transcript, report))
}
