//! The machine's window, as VMConnect has it: what the guest's console says is on the screen and nowhere
//! else, and what is typed comes by the keyboard on VMBus. On hvhost, which has both.

use crate::{LIMIT, MEMORY_MIB, cmdline, ensure_said};
use anyhow::{Context, Result, ensure};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::kernel::Kernel;
use pontoon::outcome::Status;
use pontoon_tests::guests;
use pontoon_tests::trials::shown;

/// What is done when a text is first on the screen.
const STEPS: [(&str, &str); 3] = [
    ("/ #", r"type cat /proc/cmdline; echo answer $((6*7))\n"),
    ("answer 42", "screen"),
    ("answer 42", r"type exit\n"),
];

/// A shell answers.
pub fn shell(spec: &str) -> Result<()> {
    let scratch = Scratch::new()?;
    let initrd = scratch.path().join("initrd");
    std::fs::write(&initrd, guests::initramfs(&[])?)?;
    let kernel = Kernel::get(spec)?.vmlinuz()?;
    let mut machine = Machine::new(&kernel, Some(&initrd), &cmdline("shell"));
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.more = ["--door", "linux64", "--screen", "--keyboard"].map(str::to_owned).to_vec();
    for (text, command) in STEPS {
        machine.more.extend(["--at".into(), format!("{text}={command}")]);
    }
    let mut machine = machine.under_shim(scratch.path())?;
    // Of the bundle's line the console would come too late.
    machine.append = "pontoon.log=info pontoon.console=screen".into();
    let (mut host, _) = Host::choose(Under::Auto, MEMORY_MIB)?;
    let outcome = host.run(&machine, &Input::default(), &mut shown(|_| ()))?;
    let said = &outcome.errors;
    let (_, screen) = said.split_once("hvhost: screen: ok\n").with_context(|| said.clone())?;
    for what in
        ["/ # cat /proc/cmdline; echo answer $((6*7))\n", "\nconsole=hvc0 quiet", "\nanswer 42\n"]
    {
        ensure_said(screen, what)?;
    }
    let serial = outcome.console_text();
    ensure!(serial.is_empty(), "on COM1:\n{serial}");
    ensure!(outcome.status == Status::POWER_OFF, "ended by {}:\n{said}", outcome.status.text());
    Ok(())
}
