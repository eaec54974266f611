//! Debian's kernel with its xen-netfront, under the shim.

use crate::native::{Test, all_channels_used, mark, on_tap, on_user_network, place, prepared};
use crate::pressure::under_pressure;
use anyhow::{Result, ensure};
use pontoon::host::Machine;
use pontoon_tests::lab::Lab;
use pontoon_tests::net::{self, Network};
use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// For a GiB each way and 100 000 connections.
const LONG_LIMIT: Duration = Duration::from_secs(7200);
const MAC: &str = "00:15:5d:12:34:56";

/// The tests every kernel has.
pub const TESTS: [(&str, Test); 5] = [
    ("xen-user", user),
    ("xen-tap", tap),
    ("xen-queues", queues),
    ("xen-pressure", pressure),
    ("xen-much", much),
];

/// A guest that does `test`.
fn guest(lab: &mut Lab, spec: &str, test: &str) -> Result<Machine> {
    let mut machine = prepared(lab, spec, test, net::initramfs_for_xen, "hvc0")?;
    machine.append.push_str(" pontoon.log=info");
    Ok(machine)
}

/// An address by DHCP, traffic both ways, with the offloads a guest has on Xen.
fn user(lab: &mut Lab, spec: &str) -> Result<()> {
    let machine = guest(lab, spec, "user")?;
    let (transcript, report) = on_user_network(lab, &machine, Lab::run_with)?;
    let features = mark(&transcript, "features")?;
    for feature in [
        "rx-checksumming=on",
        "tx-checksum-ipv4=on",
        "tx-checksum-ipv6=on",
        "tx-tcp-segmentation=on",
        "tx-tcp6-segmentation=on",
    ] {
        ensure!(features.contains(feature), "{feature} is missing: {features}");
    }
    let nic = &report.nics["net0"];
    ensure!(nic.sent_large > 10 && nic.sent_checksum > 10, "no offloads: {nic:?}");
    Ok(())
}

/// Everything a guest does with an interface, on a TAP with a VLAN beside it: sizes, a second card
/// that comes and goes, a channel that goes and comes again.
fn tap(lab: &mut Lab, spec: &str) -> Result<()> {
    let network = Network::new()?;
    let socket = lab.file("switch.sock")?;
    let tagged = network.switch(&socket, true)?;
    // Nobody speaks at the other end of these, of which the second takes the first one's memory.
    let quiet = [lab.file("second.sock")?, lab.file("third.sock")?];
    let _ = quiet.each_ref().map(fs::remove_file);
    let _listeners = [UnixListener::bind(&quiet[0])?, UnixListener::bind(&quiet[1])?];
    let mut machine = guest(lab, spec, "xen")?;
    machine
        .append
        .push_str(" pontoon.vif=eth0:mtu9000,eth1,eth2 pontoon.net-spare=1 pontoon_vlan=5");
    machine.append.push_str(&place(&network));
    let first = format!("socket,path={},offload=on,mac={MAC},mtu=9000", socket.display());
    let others = quiet.iter().map(|path| format!("socket,path={},detached", path.display()));
    for net in [first].into_iter().chain(others) {
        machine.nets.push(net.parse()?);
    }
    for at in [
        "@@ link-down=net-link 0 down",
        "@@ link-up=net-link 0 up",
        "@@ attach-1=net-attach 1",
        "@@ remove-1=net-remove 1",
        "@@ attach-2=net-attach 2",
        "@@ remove-2=net-remove 2",
        "@@ reoffer=net-reoffer 0",
    ] {
        machine.more.extend(["--at".into(), at.into()]);
    }
    let (transcript, report) = on_tap(lab, &machine, &network, Lab::run_with)?;
    ensure!(mark(&transcript, "mac")? == MAC, "another address");
    ensure!(mark(&transcript, "second")?.starts_with("00:15:5d"), "no second interface");
    mark(&transcript, "reoffered")?;
    ensure!(tagged.load(Ordering::Relaxed) > 100, "hardly a frame had a tag");
    let nic = &report.nics["net0"];
    ensure!(nic.sent_large > 10 && nic.sent_checksum > 100, "no offloads: {nic:?}");
    Ok(())
}

/// A queue for each of four vCPUs, with a channel of the host's each, all of them used both ways.
fn queues(lab: &mut Lab, spec: &str) -> Result<()> {
    let network = Network::new()?;
    let mut machine = guest(lab, spec, "xen_queues")?;
    machine.cpus = 4;
    machine.append.push_str(&place(&network));
    machine.nets.push(format!("tap,ifname={}", network.ifname).parse()?);
    let (transcript, report) = on_tap(lab, &machine, &network, Lab::run_with)?;
    for name in ["queues", "interrupts"] {
        ensure!(mark(&transcript, name)? == "4", "{name}: {}", mark(&transcript, name)?);
    }
    all_channels_used(&report, 4)
}

/// 10 000 pings of which none is lost, a GiB each way, 100 000 short connections.
fn much(lab: &mut Lab, spec: &str) -> Result<()> {
    let network = Network::new()?;
    let mut machine = guest(lab, spec, "much")?;
    machine.timeout = Some(LONG_LIMIT);
    machine.append.push_str(&place(&network));
    machine.nets.push(format!("tap,ifname={}", network.ifname).parse()?);
    let (transcript, _) = on_tap(lab, &machine, &network, Lab::run_with)?;
    for name in ["pings", "gibibyte-down", "gibibyte-up", "short"] {
        mark(&transcript, name)?;
    }
    for direction in ["down", "up"] {
        let seconds = mark(&transcript, &format!("{direction}-seconds"))?.to_owned();
        eprintln!("a GiB {direction} in {seconds} s");
    }
    Ok(())
}

/// Disk and network at once: neither stands still for long.
fn pressure(lab: &mut Lab, spec: &str) -> Result<()> {
    let machine = guest(lab, spec, "pressure")?;
    let late = under_pressure(lab, machine, Lab::run_with)?;
    ensure!(late.is_empty(), "stood still: {}", late.join(", "));
    Ok(())
}
