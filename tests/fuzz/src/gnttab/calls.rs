//! Calls that change no pins.

use std::sync::atomic::Ordering::Relaxed;

use translate::fake::{mfn, va};
use translate::gnttab::transfer_to_guest;
use translate::platform::GuestMemory;
use xen_abi::grant_table::{GnttabOp, GrantRef};

use super::{ARGS, GRANTS, L4, LIST, PAGES, SELF, World, not_the_table};
use crate::input::Input;

impl World {
    /// One side of a copy.
    pub(super) fn side(input: &mut Input<'_>) -> (u64, u64, u64) {
        let what = input.byte();
        let by_ref = u64::from(what & 1);
        let named = match by_ref {
            1 => u64::from(input.byte()) % u64::from(GRANTS + 1),
            _ if what & 2 != 0 => not_the_table(input.number()),
            _ => mfn(PAGES.start + u64::from(input.byte()) % 8).0,
        };
        let domid = if what & 4 != 0 { u64::from(input.half()) } else { SELF };
        let offset = if what & 8 != 0 { u64::from(input.half()) } else { 0 };
        (named, domid | offset << 16, by_ref)
    }

    pub(super) fn copy(&mut self, input: &mut Input<'_>) {
        let (source, dest) = (Self::side(input), Self::side(input));
        let len = u64::from(input.half());
        let flags = source.2 | dest.2 << 1;
        let args = [source.0, source.1, dest.0, dest.1, flags << 16 | len];
        let before = self.machine.plat.frame(mfn(L4)).map(|words| words[300].load(Relaxed));
        if self.op(GnttabOp::COPY, &args).is_ok() && (self.word(4) >> 32) as i16 == 0 {
            assert!(len <= 4096);
        }
        let after = self.machine.plat.frame(mfn(L4)).map(|words| words[300].load(Relaxed));
        assert_eq!(before, after, "an L4 in use was written to");
    }

    /// The guest gives a frame up, or takes one.
    pub(super) fn balloon(&mut self, input: &mut Input<'_>) {
        let plat = &self.machine.plat;
        let frame = mfn(PAGES.start + u64::from(input.byte()) % 8);
        let by = if plat.may_map(frame) {
            plat.release_frame(frame);
            u64::MAX
        } else {
            u64::from(plat.acquire_frame(xen_abi::Pfn(9)).is_some())
        };
        let pages = &self.machine.dom.nr_pages;
        pages.store(pages.load(Relaxed).wrapping_add(by), Relaxed);
    }

    pub(super) fn queries(&mut self, input: &mut Input<'_>) {
        let (what, nr) = (input.byte(), u64::from(input.byte()) % 6);
        let dom = if what & 0x80 != 0 { u64::from(input.half()) } else { SELF };
        let list = if what & 0x40 != 0 { input.number() } else { va(LIST).0 };
        let (op, words) = match what & 3 {
            0 => (GnttabOp::SETUP_TABLE, [nr << 32 | dom, 0, list]),
            1 => (GnttabOp::QUERY_SIZE, [dom, 0, 0]),
            2 => (GnttabOp::GET_STATUS_FRAMES, [dom << 32 | nr, list, 0]),
            _ => (GnttabOp::GET_VERSION, [dom, 0, 0]),
        };
        let _ = self.op(op, &words);
    }

    pub(super) fn transfers(&mut self, input: &mut Input<'_>) {
        let (what, gref) = (input.byte(), u32::from(input.byte()) % (GRANTS + 1));
        let frame = if what & 2 != 0 { input.number() } else { mfn(u64::from(what >> 3)).0 };
        if what & 1 != 0 {
            let domid = if what & 4 != 0 { u64::from(input.half()) } else { 1 };
            let _ = self.op(GnttabOp::TRANSFER, &[frame, u64::from(gref) << 32 | domid, 0]);
            return;
        }
        let (dom, plat) = (&self.machine.dom, &self.machine.plat);
        let given = transfer_to_guest(dom, plat, GrantRef(gref), |page| {
            page[0].store(7, Relaxed);
        });
        if let Ok(frame) = given {
            assert!(plat.is_ram(frame) && gref < GRANTS);
            assert_eq!(plat.frame(frame).map(|page| page[0].load(Relaxed)), Some(7));
        }
    }

    /// Any call on any bytes. What it did to pins is not known: only calls that change none.
    pub(super) fn raw(&mut self, input: &mut Input<'_>) {
        let ops = [
            GnttabOp::SETUP_TABLE,
            GnttabOp::QUERY_SIZE,
            GnttabOp::GET_STATUS_FRAMES,
            GnttabOp::GET_VERSION,
            GnttabOp::CACHE_FLUSH,
            GnttabOp::DUMP_TABLE,
            GnttabOp(13),
        ];
        let op = u64::from(input.pick(&ops).0);
        let (what, count) = (input.byte(), input.byte());
        for index in 0..u64::from(what & 7) {
            self.machine.plat.poke(va(ARGS).add(index * 8), input.number());
        }
        let cmd = if what & 8 != 0 { op | u64::from(input.half()) << 12 } else { op };
        let at = if what & 0x10 != 0 { input.number() } else { va(ARGS).0 };
        let count = if what & 0x20 != 0 { input.number() } else { u64::from(count % 40) };
        // Lists end where memory does.
        let _ = self.call(cmd, at, count.min(10_000));
    }
}
