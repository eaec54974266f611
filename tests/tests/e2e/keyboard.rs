//! The synthetic keyboard. Natively, Linux's driver and the keymap of its own console judge hvhost's;
//! under the shim the same keys are to type the same bytes on hvc0, and a shell answers them.

use crate::disk::md5;
use crate::{LIMIT, Lab, MEMORY_MIB, ended, in_plain_qemu};
use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine};
use pontoon::outcome::Status;
use pontoon_tests::transcript::Transcript;
use pontoon_tests::{guests, parts};
use std::fs;

const INIT: &str = include_str!("../../e2e/keyboard-init.sh");
const MODULE: &str = "hyperv-keyboard";

/// Keys, and what they type on Linux's console.
const KEYS: [(&str, &[u8]); 38] = [
    ("esc", b"\x1b"),
    ("tab", b"\t"),
    ("enter", b"\r"),
    ("backspace", b"\x7f"),
    ("up", b"\x1b[A"),
    ("down", b"\x1b[B"),
    ("right", b"\x1b[C"),
    ("left", b"\x1b[D"),
    ("home", b"\x1b[1~"),
    ("ins", b"\x1b[2~"),
    ("del", b"\x1b[3~"),
    ("end", b"\x1b[4~"),
    ("pgup", b"\x1b[5~"),
    ("pgdn", b"\x1b[6~"),
    ("f6", b"\x1b[17~"),
    ("f7", b"\x1b[18~"),
    ("f8", b"\x1b[19~"),
    ("f9", b"\x1b[20~"),
    ("f10", b"\x1b[21~"),
    ("f11", b"\x1b[23~"),
    ("f12", b"\x1b[24~"),
    ("ctrl-a", b"\x01"),
    ("rctrl-c", b"\x03"),
    ("ctrl-z", b"\x1a"),
    ("ctrl-space", b"\0"),
    ("ctrl-]", b"\x1d"),
    ("ctrl-2 ctrl-3 ctrl-6 ctrl-7", b"\0\x1b\x1e\x1f"),
    ("alt-x", b"\x1bx"),
    ("rshift-q", b"Q"),
    ("capslock a shift-b 1 capslock c", b"Ab1c"),
    ("shift ctrl alt menu scrolllock scrolllock", b""),
    ("kp7 kp1 kp5 kp0 kp.", b"7150."),
    ("kp/ kp* kp- kp+ kpenter", b"/*-+\r"),
    ("pause kp9", b"\x1b[P9"),
    ("numlock", b""),
    ("kp7 kp8 kp3 kp0 kp.", b"\x1b[1~\x1b[A\x1b[6~\x1b[2~\x1b[3~"),
    ("kp5 kp/ kp-", b"\x1b[G/-"),
    ("numlock", b""),
];

/// Every character of the layout.
fn characters() -> Vec<u8> {
    (b' '..=b'~').rev().collect()
}

/// More than the shim and the guest's kernel hold of what nobody reads.
fn much() -> Vec<u8> {
    characters().repeat(100)
}

/// As `type` takes it.
fn escaped(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace('\\', "\\\\")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A guest in which `tty` is typed on, and what is done meanwhile.
fn machine(lab: &mut Lab, spec: &str, tty: &str, more: &[(&str, &str)]) -> Result<Machine> {
    let kernel = lab.kernel(spec)?;
    let is_native = tty != "/dev/hvc0";
    let drivers = if is_native { parts::drivers(&kernel, &[MODULE])? } else { Vec::new() };
    let scratch = lab.scratch()?;
    let initrd = scratch.join("keyboard-initrd");
    fs::write(&initrd, guests::with_init(&[INIT], &drivers)?)?;
    let console = if is_native { "ttyS0" } else { "hvc0" };
    let bytes: usize = KEYS.iter().map(|(_, bytes)| bytes.len()).sum();
    let (first, second) = (characters().len() + bytes, characters().len());
    let append = format!(
        "console={console} quiet panic=-1 pontoon_tty={tty} pontoon_first={first} pontoon_second={second} pontoon_much={}",
        much().len()
    );
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd), &append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.stats = true;
    machine.more = vec!["--keyboard".into()];
    let mut at = |marker: &str, command: &str| {
        machine.more.extend(["--at".into(), format!("{marker}={command}")]);
    };
    let text = escaped(&characters());
    if is_native {
        // It begins without; the shim with, as Windows does.
        at("@@ first-now", "key numlock");
    }
    at("@@ first-now", &format!("type {text}"));
    for (names, _) in KEYS {
        at("@@ first-now", &format!("key {names}"));
    }
    at("@@ remove-now", "keyboard-remove");
    at("@@ add-now", "keyboard-add");
    at("@@ second-now", "list");
    at("@@ second-now", &format!("type {text}"));
    more.iter().for_each(|(marker, command)| at(marker, command));
    if is_native { Ok(machine) } else { machine.under_shim(&scratch) }
}

/// Runs it; what was typed is what was pressed.
fn typed(lab: &mut Lab, machine: &Machine) -> Result<(Transcript, String)> {
    let outcome = lab.run(machine, &Input::default(), &mut |_| {})?;
    let transcript = Transcript::of(&outcome);
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    let tail = transcript.tail();
    ensure!(transcript.mark("failed").is_none(), "{tail}\nhost:\n{}", outcome.errors);
    let bytes: Vec<u8> = KEYS.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    for (name, wanted) in
        [("first", hex(&[characters(), bytes].concat())), ("second", hex(&characters()))]
    {
        let is = transcript.mark(name).with_context(|| format!("no @@ {name}:\n{tail}"))?;
        ensure!(is == wanted, "{name}: typed\n{is}, not\n{wanted}\nhost:\n{}", outcome.errors);
    }
    let stats: serde_json::Value =
        serde_json::from_str(outcome.stats.as_deref().context("no counters")?)?;
    let channel = &stats["channels"]["keyboard"];
    ensure!(channel["malformed"].as_u64() == Some(0), "{channel}");
    ensure!(channel["requests"].as_u64() > Some(500), "{channel}");
    Ok((transcript, outcome.errors))
}

/// Debian's kernel with `hyperv_keyboard`.
pub fn native(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    let machine = machine(lab, spec, "/dev/tty1", &[])?;
    let (transcript, _) = typed(lab, &machine)?;
    let log = transcript.log.context("no kernel log")?;
    let is_about =
        |line: &&String| ["keyboard", "atkbd", "serio", "hv_"].iter().any(|w| line.contains(w));
    let complaints: Vec<_> = log
        .iter()
        .filter(is_about)
        // Linux 5.10 asks that of every machine without a framebuffer.
        .filter(|line| !line.contains("Unexpected framebuffer mmio base of zero"))
        .map(String::as_str)
        .collect();
    ensure!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
    Ok(())
}

/// Nothing comes by the serial port: bytes as on Linux's console, then a shell.
pub fn under_shim(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    if in_plain_qemu() {
        // Only hvhost has keyboards.
        return Ok(());
    }
    let much_typed = format!("type {}", escaped(&much()));
    // Each prompt is another one, so that nothing is typed before the shell reads.
    let dialogue = [
        ("@@ much-now", much_typed.as_str()),
        ("/ # ", "type echo answer $((6*7)), Grüße \u{1f600}; PS1=\"n$((n=n+1))> \"\\n"),
        // Again, by the shell's history; and what is half typed goes.
        ("n1> ", "key up enter"),
        ("n2> ", "type exit 5"),
        ("n2> ", "key ctrl-c"),
        ("n2> ", "type exit\\n"),
    ];
    let mut machine = machine(lab, spec, "/dev/hvc0", &dialogue)?;
    machine.cpus = 2;
    let (transcript, said) = typed(lab, &machine)?;
    let file = lab.scratch()?.join("much");
    fs::write(&file, much())?;
    ensure!(transcript.mark("much") == Some(&md5(&file)?), "not all of much is there");
    let answers = transcript.text.matches("answer 42, Grüße \u{1f600}").count();
    ensure!(answers == 2, "{answers} answers of the shell:\n{}", transcript.tail());
    ensure!(
        said.contains("keyboard ready leds=num "),
        "the host does not know the lights:\n{said}"
    );
    Ok(())
}
