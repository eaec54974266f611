//! The flags of an entry under real concurrency: what the guest took back, no backend holds.

use std::sync::atomic::{AtomicBool, Ordering, fence};

use super::*;
use crate::gnttab::{access, release};
use crate::platform::GuestMemory;

const GRANTS: u64 = 3;
const IN_USE: u64 = (gtf::READING | gtf::WRITING) as u64;

/// Linux's way of ending access: version 1 exchanges the flags for none as long as none of use is
/// among them; version 2 clears them and looks at the status behind a barrier.
fn end_access(plat: &crate::fake::FakePlatform, v2: bool, gref: u64) {
    let entry = |word: u64| &plat.frame(mfn(40)).unwrap()[word as usize];
    if v2 {
        entry(gref * 2).store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let status = &plat.frame(mfn(48)).unwrap()[0];
        while status.load(Ordering::Acquire) >> (gref * 16) & IN_USE != 0 {
            std::hint::spin_loop();
        }
        return;
    }
    loop {
        let word = entry(gref).load(Ordering::Relaxed);
        if word & IN_USE == 0
            && entry(gref).compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            return;
        }
        std::hint::spin_loop();
    }
}

fn run(v2: bool) {
    const ROUNDS: u64 = 3000;
    let mut m = machine();
    if v2 {
        op(&mut m, GnttabOp::SET_VERSION, &[2]).unwrap();
    }
    let (dom, plat) = (&*m.dom, &m.plat);
    let live: [AtomicBool; GRANTS as usize] = Default::default();
    let done = AtomicBool::new(false);
    let came = AtomicBool::new(false);
    let (live, done, came) = (&live, &done, &came);
    std::thread::scope(|scope| {
        let backend = |seed: u64| {
            move || {
                let (mut state, mut got) = (seed, 0u64);
                while !done.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let (gref, write) = (state >> 40 & 3, state >> 50 & 1 == 1);
                    let gref32 = GrantRef(gref as u32);
                    let Ok(page) = access(dom, plat, gref32, write) else { continue };
                    assert_eq!(page.mfn, mfn(10 + gref));
                    for _ in 0..8 {
                        assert!(live[gref as usize].load(Ordering::SeqCst), "taken back, yet held");
                    }
                    release(dom, gref32, write);
                    came.store(true, Ordering::Relaxed);
                    got += 1;
                }
                got
            }
        };
        let backends = [scope.spawn(backend(1)), scope.spawn(backend(99))];
        // On a busy machine the backends may start late.
        let enough =
            |round| round >= ROUNDS && came.load(Ordering::Relaxed) || round >= 1000 * ROUNDS;
        for round in (0..).take_while(|round| !enough(*round)) {
            let gref = round % GRANTS;
            live[gref as usize].store(true, Ordering::SeqCst);
            let head = u64::from(gtf::PERMIT_ACCESS);
            let words = plat.frame(mfn(40)).unwrap();
            if v2 {
                words[gref as usize * 2 + 1].store(mfn(10 + gref).0, Ordering::Relaxed);
                words[gref as usize * 2].store(head, Ordering::Release);
            } else {
                words[gref as usize].store(head | mfn(10 + gref).0 << 32, Ordering::Release);
            }
            if round % 8 == 0 || round >= ROUNDS {
                std::thread::yield_now();
            }
            end_access(plat, v2, gref);
            live[gref as usize].store(false, Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
        let got: u64 = backends.map(|backend| backend.join().unwrap()).iter().sum();
        assert!(got > 0, "no access ever came through");
    });
    for gref in 0..GRANTS as u32 {
        assert!(!dom.gnttab.table.read().active[gref as usize].is_pinned());
    }
}

#[test]
fn version_1() {
    run(false);
}

#[test]
fn version_2() {
    run(true);
}
