//! The loop.

use core::sync::atomic::{AtomicU64, Ordering};

use tiny_guests::paging::PAGE;
use tiny_guests::trap::{self, Frame};
use tiny_guests::{Random, StartInfo, hypercall, probe, say};

use crate::calls::{Call, Generator};
use crate::memory::{Memory, SCRATCH_PAGES, WINDOW_PAGES};
use crate::others;

static SCRATCH: AtomicU64 = AtomicU64::new(0);
static WINDOW: AtomicU64 = AtomicU64::new(0);
/// The call under way and its arguments, for the report of an unexpected trap.
static CURRENT: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Hypercalls counted one by one; the rest is summed up in the last row.
const ROWS: usize = 65;

/// Whether an address is in the scratch pages.
pub fn in_scratch(address: u64) -> bool {
    address.wrapping_sub(SCRATCH.load(Ordering::Relaxed)) < SCRATCH_PAGES * PAGE
}

/// Whether an address is in the window.
pub fn in_window(address: u64) -> bool {
    address.wrapping_sub(WINDOW.load(Ordering::Relaxed)) < WINDOW_PAGES * PAGE
}

/// Debug traps, NMIs and events come at any time; a trap is for `probe!`.
fn hook(frame: &mut Frame) -> bool {
    match frame.vector {
        1 => {
            // SAFETY: switches the watchpoints off.
            unsafe { hypercall::raw(8, [7, 0x400, 0, 0, 0, 0]) };
            frame.rflags &= !0x100;
            true
        }
        2 => true,
        trap::EVENT => {
            // Stay masked: an upcall that nobody handles would come for ever.
            frame.rflags &= !0x200;
            true
        }
        _ => {
            if trap::RECOVER_RIP.load(Ordering::Relaxed) == 0 {
                say!("FAIL call {CURRENT:x?} left a trap behind");
            }
            false
        }
    }
}

/// Issues the call; a trap in its place is an answer, too.
fn issue(&(number, args): &Call) -> Option<i64> {
    let result: i64;
    // SAFETY: `Generator` draws no call that could harm this guest.
    let trap = unsafe {
        probe!("mov r10, r12", "mov r8, r13", "mov r9, r14", "syscall";
            inout("rax") number => result, inout("rdi") args[0] => _, inout("rsi") args[1] => _,
            inout("rdx") args[2] => _, in("r12") args[3], in("r13") args[4], in("r14") args[5],
            out("rcx") _)
    };
    trap.is_none().then_some(result)
}

/// An FNV-1a sum over what must not change.
fn checksum(info: &StartInfo, memory: &Memory) -> u64 {
    const TEXT: u64 = 0xffff_ffff_8010_0000;
    let text = (TEXT..TEXT + 4 * PAGE).step_by(8);
    let p2m = (info.mfn_list..info.mfn_list + info.nr_pages.min(1024) * 8).step_by(8);
    text.chain(p2m).chain(memory.read_only_words()).fold(0xcbf2_9ce4_8422_2325, |sum, at| {
        // SAFETY: all three are mapped all the time.
        let word =
            unsafe { core::ptr::with_exposed_provenance::<u64>(at as usize).read_volatile() };
        (sum ^ word).wrapping_mul(0x100_0000_01b3)
    })
}

#[derive(Clone, Copy, Default)]
struct Row {
    fine: u32,
    no_such: u32,
    fault: u32,
    invalid: u32,
    permission: u32,
    other: u32,
    trap: u32,
}

impl Row {
    fn add(&mut self, answer: Option<i64>) {
        let column = match answer {
            None => &mut self.trap,
            Some(-38) => &mut self.no_such,
            Some(-14) => &mut self.fault,
            Some(-22) => &mut self.invalid,
            Some(-1) => &mut self.permission,
            Some(-4095..0) => &mut self.other,
            Some(_) => &mut self.fine,
        };
        *column += 1;
    }
}

fn print(rows: &[Row; ROWS]) {
    say!("hypercall: fine, ENOSYS, EFAULT, EINVAL, EPERM, other errors, traps");
    for (number, row) in rows.iter().enumerate() {
        let Row { fine, no_such, fault, invalid, permission, other, trap } = *row;
        if fine | no_such | fault | invalid | permission | other | trap != 0 {
            say!("{number}: {fine} {no_such} {fault} {invalid} {permission} {other} {trap}");
        }
    }
}

/// Entry.
pub fn main(info: &'static StartInfo) -> ! {
    let calls = info.number("calls").unwrap_or(10_000_000);
    let seed = info.number("seed").unwrap_or(1);
    trap::install();
    trap::set_hook(hook);
    let mut memory = Memory::new(info);
    SCRATCH.store(memory.scratch, Ordering::Relaxed);
    WINDOW.store(memory.window, Ordering::Relaxed);
    let mut random = Random::new(seed);
    assert!(memory.prepare(&mut random), "the arena could not be mapped");
    say!("hcfuzz: {calls} calls, seed {seed}, {} pages", info.nr_pages);
    let before = checksum(info, &memory);
    let cpus = info.number("cpus").unwrap_or(1);
    let others = others::start(info, &mut memory, cpus);
    assert!(others as u64 + 1 >= cpus, "{others} other processors of {cpus}");
    let mut generator = Generator { memory: &memory, random, scratch_used: 0 };
    let mut rows = [Row::default(); ROWS];
    let trace = info.number("trace").unwrap_or(u64::MAX);
    for done in 0..calls {
        generator.scratch_used = 0;
        let call = generator.call(false);
        if done >= trace {
            say!("{done}: {} {:x?}", call.0, call.1);
        }
        for (slot, word) in CURRENT.iter().zip([done, call.0].into_iter().chain(call.1)) {
            slot.store(word, Ordering::Relaxed);
        }
        let answer = issue(&call);
        if let Some(row) = rows.get_mut((call.0 as usize).min(ROWS - 1)) {
            row.add(answer);
        }
        // What another call may have changed.
        if matches!(call.0 as u32, 0 | 4 | 13 | 28 | 30) {
            trap::install();
        }
        if (done + 1) % (calls / 16).max(1) == 0 {
            say!("hcfuzz: {} calls, {} traps", done + 1, trap::count());
        }
    }
    print(&rows);
    let calls_of_others = others::calls();
    say!("hcfuzz: others made {:?}", calls_of_others.get(..others));
    assert!(calls_of_others.iter().take(others).all(|&calls| calls > 100), "one stands still");
    assert!(checksum(info, &memory) == before, "code, p2m or read-only pages changed");
    say!("hcfuzz: {calls} done");
    hypercall::shutdown(hypercall::SHUTDOWN_POWEROFF)
}
