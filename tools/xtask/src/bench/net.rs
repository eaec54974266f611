//! `bench net`: iperf3 between a guest on hvhost and this machine, by a TAP: by the kernel's own Hyper-V
//! driver, and by its Xen driver under the shim. Times in an emulator say little about silicon; how
//! often a packet leaves the guest carries over.

use super::cost;
use super::count::Counter;
use anyhow::{Context, Result, ensure};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::initramfs::{self, Extra};
use pontoon::kernel::Kernel;
use pontoon::outcome::Outcome;
use pontoon_tests::net::{self, Network};
use pontoon_tests::parts::{self, Running};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MEMORY_MIB: u64 = 512;
const LIMIT: Duration = Duration::from_secs(1200);
const IPERF: &str = "/usr/bin/iperf3";

/// Options of `bench net`.
#[derive(clap::Args)]
pub struct Net {
    /// Debian kernel to measure: a suite, or suite:release.
    #[arg(long, default_value = "bookworm")]
    kernel: String,
    /// Phases to run, separated by commas [default: all].
    #[arg(long, value_delimiter = ',')]
    phases: Vec<String>,
    /// Largest packet.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(576..=9000))]
    mtu: u32,
    /// IPv6.
    #[arg(long)]
    v6: bool,
    /// Let the switch take so many packets a second in each direction, and no more [default: as many
    /// as can be].
    #[arg(long, value_name = "N")]
    pps: Option<NonZeroU32>,
    /// Length of a phase.
    #[arg(long, default_value_t = 5, value_name = "N")]
    seconds: u32,
    /// Count the instructions in the shim, too: one more boot, under emulation.
    #[arg(long)]
    instructions: bool,
    /// Count VM exits by reason; slows each a little.
    #[arg(long)]
    trace: bool,
    /// Times each side is booted; the best of each line counts.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Write the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What goes which way. Up is from the guest.
struct Phase {
    name: &'static str,
    is_udp: bool,
    streams: u32,
    is_down: bool,
}

const fn phase(name: &'static str, is_udp: bool, streams: u32, is_down: bool) -> Phase {
    Phase { name, is_udp, streams, is_down }
}

const PHASES: [Phase; 8] = [
    phase("tcp-up-1", false, 1, false),
    phase("tcp-down-1", false, 1, true),
    phase("tcp-up-8", false, 8, false),
    phase("tcp-down-8", false, 8, true),
    phase("udp-up-1", true, 1, false),
    phase("udp-down-1", true, 1, true),
    phase("udp-up-8", true, 8, false),
    phase("udp-down-8", true, 8, true),
];

impl Phase {
    /// iperf3's options. Datagrams are sent at the switch's rate, or as fast as it goes: more than a
    /// switch takes would wait in queues, and arrive after the end.
    fn words(&self, pps: Option<NonZeroU32>) -> String {
        let mut words = format!("-P {}", self.streams);
        if self.is_udp {
            let bits = pps.map_or(0, |pps| u64::from(pps.get()) * 64 * 8 / u64::from(self.streams));
            words += &format!(" -u -l 64 -b {bits}");
        }
        if self.is_down {
            words += " -R";
        }
        words
    }
}

/// Measures natively and under the shim, and prints both beside each other.
pub fn run(options: &Net) -> Result<()> {
    pontoon::setup::for_testing()?;
    let phases = chosen(options)?;
    let kernel = Kernel::get(&options.kernel)?;
    let (mut host, why) = Host::choose(Under::Auto, MEMORY_MIB)?;
    eprintln!("bench: {why}");
    let mut both = cost::compare(&phases, options.rounds, |native| {
        let before = net::checksum_errors()?;
        let outcome = boot(&mut host, &kernel, options, &phases, native)?;
        let console = finished(&outcome)?;
        let wrong = net::checksum_errors()? - before + net::wrong_sums(&console);
        ensure!(wrong == 0, "{wrong} packets had wrong checksums");
        cost::costs(&outcome, &phases, |name| carried(&console, name, options.mtu))
    })?;
    drop(host);
    if options.instructions {
        both.add_instructions(instructions(options, &kernel, &phases)?);
    }
    let (mtu, ip) = (options.mtu, if options.v6 { "IPv6" } else { "IPv4" });
    let pace = options.pps.map(|pps| format!(", {pps} packets/s")).unwrap_or_default();
    let title = format!("Linux {} on hvhost, {ip}, MTU {mtu}{pace}", kernel.release);
    both.print(&title, "packet of the MTU's size, or datagram");
    if let Some(path) = &options.json {
        let about = serde_json::json!({
            "benchmark": "net", "kernel": kernel.release, "package_version": kernel.version,
            "mtu": mtu, "ip": ip, "pps": options.pps,
        });
        both.write(path, about)?;
    }
    Ok(())
}

/// The phases asked for, in their own order.
fn chosen(options: &Net) -> Result<Vec<String>> {
    let all = PHASES.map(|phase| phase.name);
    for name in &options.phases {
        ensure!(all.contains(&name.as_str()), "no phase {name}; there are {all:?}");
    }
    let wanted = |name: &String| options.phases.is_empty() || options.phases.contains(name);
    Ok(all.into_iter().map(str::to_owned).filter(wanted).collect())
}

/// Boots the guest under the shim once more, in an emulation that counts; instructions in the shim
/// per packet.
fn instructions(options: &Net, kernel: &Kernel, phases: &[String]) -> Result<Vec<f64>> {
    eprintln!("bench: shim, counting instructions …");
    let counter = Counter::new()?;
    let mut host = Host::Nested(Box::new(counter.start(MEMORY_MIB, None)?));
    let outcome = boot(&mut host, kernel, options, phases, false)?;
    let console = finished(&outcome)?;
    let counts = counter.counts()?;
    ensure!(counts.len() == phases.len(), "{} counts for {} phases", counts.len(), phases.len());
    let per_packet =
        |(name, count): (&String, u64)| Ok(count as f64 / carried(&console, name, options.mtu)?.0);
    phases.iter().zip(counts).map(per_packet).collect()
}

fn finished(outcome: &Outcome) -> Result<String> {
    cost::check(outcome, "@@ done")?;
    Ok(outcome.console_text())
}

/// Packets and seconds of a phase, from what iperf3 says at its end: bytes in packets of the MTU's
/// size, or datagrams that arrived.
fn carried(console: &str, name: &str, mtu: u32) -> Result<(f64, f64)> {
    let line = console.lines().find_map(|l| l.trim().strip_prefix(&format!("@@ {name} said ")));
    let said: serde_json::Value = serde_json::from_str(line.context("iperf3 said nothing")?)?;
    if let Some(error) = said["error"].as_str() {
        anyhow::bail!("iperf3: {error}");
    }
    let end = &said["end"];
    let number = |of: &serde_json::Value, field: &str| {
        of[field].as_f64().with_context(|| format!("iperf3 says no {field}: {end}"))
    };
    let sum = &end["sum_received"];
    // `sum`, which only datagrams have, takes for arrived what was lost after the last that did.
    let count = if end["sum"].is_object() {
        number(sum, "packets")? - number(sum, "lost_packets")?
    } else {
        number(sum, "bytes")? / f64::from(mtu)
    };
    Ok((count, number(sum, "seconds")?))
}

/// iperf3's other end.
fn server(port: u16) -> Result<Running> {
    Running::start(Command::new(IPERF).args(["-s", "-p", &port.to_string()]))
}

fn boot(
    host: &mut Host,
    kernel: &Kernel,
    options: &Net,
    phases: &[String],
    native: bool,
) -> Result<Outcome> {
    let dir = Scratch::new()?;
    let network = Network::new()?;
    network.set_mtu(&options.mtu.to_string())?;
    let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port();
    let _server = server(port)?;
    let initrd_path = dir.path().join("initrd");
    let init = init(options, phases, &network, port);
    fs::write(&initrd_path, initrd(kernel, native, &init)?)?;
    let console = if native { "ttyS0" } else { "hvc0" };
    let append = format!("console={console} quiet panic=-1 pontoon.vif=eth0:mtu{}", options.mtu);
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd_path), &append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    let pps = options.pps.map(|pps| format!(",pps={pps}")).unwrap_or_default();
    let net = format!("tap,ifname={},mtu={}{pps}", network.ifname, options.mtu);
    machine.nets = vec![net.parse()?];
    cost::count_phases(&mut machine, phases, options.trace);
    let machine = if native { machine } else { machine.under_shim(dir.path())? };
    host.run(&machine, &Input::default(), &mut |_| {})
}

fn init(options: &Net, phases: &[String], network: &Network, port: u16) -> String {
    let (net, mtu, seconds) = (network.number, options.mtu, options.seconds);
    let server = if options.v6 { format!("fd5a:ce00:{net}::1") } else { format!("198.18.{net}.1") };
    let wanted = PHASES.iter().filter(|phase| phases.iter().any(|name| name == phase.name));
    let lines: String = wanted
        .map(|phase| format!("phase {} {}\n", phase.name, phase.words(options.pps)))
        .collect();
    format!(
        "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /tmp
for module in $(cat /modules/list); do insmod /modules/$module || echo insmod $module failed; done
n=0; while [ ! -d /sys/class/net/eth0 ] && [ $n -lt 20 ]; do sleep 1; n=$((n + 1)); done
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set lo up
ip link set eth0 mtu {mtu} up
ip addr add 198.18.{net}.2/24 dev eth0
ip addr add fd5a:ce00:{net}::2/64 dev eth0
n=0; while ! ping -c 1 -w 1 {server} >/dev/null && [ $n -lt 20 ]; do n=$((n + 1)); done
phase() {{
	name=$1; shift
	echo \"@@ $name begin\"
	mark begin
	iperf3 -c {server} -p {port} -t {seconds} -i 0 -J \"$@\" >/tmp/said
	mark end
	echo \"@@ $name end\"
	echo \"@@ $name said $(tr -d '\\n\\t' </tmp/said)\"
}}
{lines}cat /proc/net/snmp /proc/net/snmp6 | tr -s ' \\t' ' '
echo @@ done
poweroff -f
"
    )
}

fn initrd(kernel: &Kernel, native: bool, init: &str) -> Result<Vec<u8>> {
    let driver = if native { "hv_netvsc" } else { "xen-netfront" };
    let packets = kernel.modules(&["af_packet"]).is_ok().then_some("af_packet");
    let modules: Vec<_> = [driver].into_iter().chain(packets).collect();
    let mut extras = parts::drivers(kernel, &modules)?;
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mark = pontoon_tests::guests::program("mark")?;
    extras.push(Extra { name: "sbin/mark".into(), data: read(&mark)? });
    extras.push(Extra { name: "sbin/iperf3".into(), data: read(Path::new(IPERF))? });
    for library in parts::libraries_of(IPERF)? {
        let name = library.to_string_lossy().trim_start_matches('/').to_owned();
        extras.push(Extra { name, data: read(&library)? });
    }
    initramfs::build(init, &extras)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iperf_is_told() {
        let words: Vec<_> = PHASES.iter().map(|phase| phase.words(NonZeroU32::new(1000))).collect();
        assert_eq!(words[0], "-P 1");
        assert_eq!(words[3], "-P 8 -R");
        assert_eq!(words[4], "-P 1 -u -l 64 -b 512000");
        assert_eq!(words[7], "-P 8 -u -l 64 -b 64000 -R");
        assert_eq!(PHASES[5].words(None), "-P 1 -u -l 64 -b 0 -R");
    }

    #[test]
    fn what_iperf_says() {
        let console = "@@ tcp-up-1 said {\"end\":{\"sum_received\":{\"seconds\":2.0,\"bytes\":3000}}}\r\n\
            @@ udp-up-1 said {\"end\":{\"sum\":{\"packets\":90},\
              \"sum_received\":{\"seconds\":5,\"packets\":70,\"lost_packets\":20}}}\n\
            @@ udp-down-1 said {\"error\":\"unable to connect\"}\n";
        assert_eq!(carried(console, "tcp-up-1", 1500).unwrap(), (2.0, 2.0));
        assert_eq!(carried(console, "udp-up-1", 1500).unwrap(), (50.0, 5.0));
        assert!(carried(console, "udp-down-1", 1500).unwrap_err().to_string().contains("unable"));
        assert!(carried(console, "tcp-up-8", 1500).is_err());
    }
}
