//! Guests of several processors.

use anyhow::{Context, Result, ensure};
use pontoon::host::Input;
use pontoon::outcome::Status;

use crate::{Lab, Transcript, complaints, ended, in_plain_qemu, is_pv};

/// The checks whose subject is processors, threads, and what interrupts and timers do between them.
const PART: &str = "stress:processors,threads,futex,eventfd,nanosleep,sleepers,thread_signals,fork";

/// Of these, what does not take longer the more processors there are.
const FEW: &str = "stress:threads_ping,futex,nanosleep,fork";

/// Two processors.
pub fn two(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    on(lab, spec, without, 2, PART)
}

/// Four.
pub fn four(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    on(lab, spec, without, 4, PART)
}

/// Eight.
pub fn eight(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    on(lab, spec, without, 8, PART)
}

/// Sixteen, and what is done with them is little.
pub fn sixteen(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    on(lab, spec, without, 16, FEW)
}

/// As many as there may be.
pub fn sixty_four(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    on(lab, spec, without, 64, FEW)
}

fn on(lab: &mut Lab, spec: &str, without: &[String], cpus: u32, part: &str) -> Result<()> {
    let (outcome, transcript) = lab.guest_on(spec, without, part, cpus)?;
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    is_pv(&transcript)?;
    let found: u32 = transcript.mark("cpus").context("no processors")?.parse()?;
    ensure!(found == cpus, "{found} processors of {cpus}");
    complaints(lab, spec, &transcript)
}

/// A reboot, and a crash, while other processors run.
pub fn ends(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let (outcome, transcript) = lab.guest_on(spec, without, "reboot", 3)?;
    is_pv(&transcript)?;
    ended(&outcome, &transcript, Status::RESET)?;
    let (outcome, transcript) = lab.guest_on(spec, without, "crash", 3)?;
    is_pv(&transcript)?;
    ended(&outcome, &transcript, Status::CRASH)
}

/// `pontoon.max_vcpus` leaves processors out.
pub fn fewer(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let test = "none pontoon.max_vcpus=2";
    let (outcome, transcript) = lab.guest_on(spec, without, test, 3)?;
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    ensure!(transcript.mark("cpus") == Some("2"), "processors: {:?}", transcript.mark("cpus"));
    Ok(())
}

/// `pontoon.vcpus`: the guest puts the others down, as it is told in the store, and may not bring them
/// up by itself.
pub fn offline(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let test = "online:2 pontoon.vcpus=2";
    let (outcome, transcript) = lab.guest_on(spec, without, test, 3)?;
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    let tail = || transcript.tail();
    ensure!(
        transcript.mark("online") == Some("0-1"),
        "{:?}:\n{}",
        transcript.mark("online"),
        tail()
    );
    Ok(())
}

/// Three processors, of which hvhost makes some odd by these words; only it has such.
fn odd(
    lab: &mut Lab,
    spec: &str,
    without: &[String],
    test: &str,
    words: &[&str],
) -> Result<Option<Transcript>> {
    if in_plain_qemu() {
        return Ok(None);
    }
    let append = format!("console=hvc0 quiet panic=-1 pontoon_test={test}");
    let mut machine = lab.machine(spec, &append, true)?;
    machine.without = without.to_vec();
    machine.cpus = 3;
    machine.more = words.iter().map(|&word| word.into()).collect();
    let outcome = lab.run(&machine, &Input::default(), &mut |_| {})?;
    let transcript = Transcript::of(&outcome);
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    Ok(Some(transcript))
}

/// A processor whose TSC is not the others': the clocks agree all the same.
pub fn other_tsc(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let test = "stress:clock,timer,sleepers,threads_ping";
    let Some(transcript) = odd(lab, spec, without, test, &["--tsc-ahead", "1=10"])? else {
        return Ok(());
    };
    ensure!(transcript.text.contains("the TSC of processor 1 is off by"), "nothing is said");
    ensure!(!transcript.text.contains("the TSC of processor 2"), "another is off, too");
    ensure!(transcript.mark("cpus") == Some("3"), "processors: {:?}", transcript.mark("cpus"));
    ensure!(transcript.mark("stress") == Some("0"), "the clocks differ:\n{}", transcript.tail());
    Ok(())
}

/// Processors to which CPUID tells APIC ids that are not theirs.
pub fn other_ids(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let words = ["--cpuid-id", "1=16", "--cpuid-id", "2=17"];
    let Some(transcript) = odd(lab, spec, without, "none", &words)? else { return Ok(()) };
    ensure!(transcript.mark("cpus") == Some("3"), "processors: {:?}", transcript.mark("cpus"));
    Ok(())
}

/// A machine with more processors than answer: the guest comes up with the others.
pub fn missing(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let words = ["--dead-cpu", "1"];
    let Some(transcript) = odd(lab, spec, without, "none", &words)? else { return Ok(()) };
    let said = transcript.text.contains("APIC id 1 does not start");
    ensure!(said, "nothing is said about the one that is missing:\n{}", transcript.tail());
    ensure!(transcript.mark("cpus") == Some("2"), "processors: {:?}", transcript.mark("cpus"));
    Ok(())
}
