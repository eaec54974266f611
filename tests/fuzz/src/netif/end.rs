//! The frontend goes, and what must be so then.

use pv_frontends::net::TxEnd;
use pv_frontends::netback::fake::card::Frame;
use pv_frontends::netback::fake::front::{Features, Front, LINUX, Wish, connect_all};
use pv_frontends::netback::fake::packet::Recipe;

use super::{FRAMES, Game};

impl Game {
    /// The frontend closes while packets are anywhere.
    pub(super) fn close(&mut self) {
        for queue in 0..self.fronts.len() {
            self.answers(queue);
            self.poll(queue);
        }
        // What is half done may fail.
        (self.may_refuse, self.is_closing) = (true, true);
        self.w.set_state(5);
        self.check_card();
        self.willing_card();
        for _ in 0..10_000 {
            self.check_card();
            if self.w.vif.device().state().pending.is_empty() {
                break;
            }
            self.end_packet(0, TxEnd::Sent);
            self.w.settle();
        }
        self.w.set_state(6);
        self.w.settle();
        self.check_card();
        for queue in 0..self.fronts.len() {
            self.answers(queue);
            self.poll(queue);
        }
        // Where the card is gone its directory is, too.
        assert_eq!(self.w.back_state(), if self.is_removed { 0 } else { 6 });
        assert!(!self.w.any_in_use(), "grants are in use without a frontend");
        assert!(self.ports().into_iter().all(|port| self.w.is_let_go(port)));
        assert_eq!(self.w.vif.is_gone(), self.is_removed);
        if !self.is_spoilt {
            assert!(self.partial.iter().all(Option::is_none));
            let at_card = self.chains.values().find(|chain| chain.at_card);
            assert!(at_card.is_none(), "sent and not answered: {at_card:?}");
        }
        self.is_closing = false;
    }

    /// From now on the card takes everything.
    fn willing_card(&self) {
        let mut state = self.w.vif.device().state();
        (state.room, state.refuse, state.busy_once) = (usize::MAX, None, false);
    }

    fn ports(&self) -> Vec<u32> {
        let port = |front: &Front| [front.tx_port, front.rx_port];
        let mut ports: Vec<_> = self.fronts.iter().flat_map(port).collect();
        ports.extend(self.ctrl.as_ref().map(|ctrl| ctrl.port));
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// The frontend frees what it had.
    pub(super) fn let_go(&mut self) {
        for chain in core::mem::take(&mut self.chains).into_values() {
            self.w.end_access(chain.own.0);
            self.w.free_page(chain.own.1);
        }
        self.ids.clear();
        self.last_sent.clear();
        for front in core::mem::take(&mut self.fronts) {
            front.destroy(&mut self.w);
        }
        if let Some(ctrl) = self.ctrl.take() {
            ctrl.destroy(&mut self.w);
        }
    }

    /// Everything that was begun ends: packets are sent and answered, and received. How many were
    /// before.
    pub(super) fn end(mut self) -> (u64, u64) {
        let seen = (self.answered, self.got);
        self.release();
        if !self.is_spoilt && !self.is_removed {
            self.send_all();
        }
        if !self.is_spoilt && !self.is_removed {
            self.receive_all();
        }
        self.close();
        self.check_counters();
        if self.is_spoilt || self.features.flip {
            // Its pages may be anywhere.
            self.ports().into_iter().for_each(|port| self.w.close_port(port));
            (self.fronts, self.ctrl) = (Vec::new(), None);
        } else {
            self.let_go();
            for (gref, page) in core::mem::take(&mut self.shared) {
                self.w.end_access(gref);
                self.w.free_page(page);
            }
            let (pages, grefs) = self.w.free_counts();
            assert_eq!((pages as u64, grefs), (FRAMES - 20, 504));
        }
        if !self.is_removed {
            self.successor();
        }
        seen
    }

    fn send_all(&mut self) {
        self.willing_card();
        for queue in 0..self.fronts.len() {
            self.fronts[queue].flush(&self.w);
        }
        for _ in 0..1000 {
            self.w.settle();
            self.check();
            if self.is_spoilt || self.w.vif.device().state().pending.is_empty() {
                break;
            }
            self.end_packet(0, TxEnd::Sent);
        }
        for queue in 0..self.fronts.len() {
            self.answers(queue);
        }
        if !self.is_spoilt {
            assert!(self.chains.is_empty(), "not answered: {:?}", self.chains.values().next());
            assert_eq!(self.ids.len(), 0);
        }
    }

    /// With slots for them all packets come, and the card brings more.
    fn receive_all(&mut self) {
        for _ in 0..1000 {
            for queue in 0..self.fronts.len() {
                self.poll(queue);
                self.post(queue, 0x3f);
            }
            if self.w.vif.deadline().is_some() {
                self.w.tick();
            }
            self.w.pump();
            if self.waiting() == 0 {
                break;
            }
        }
        assert_eq!(self.waiting(), 0, "packets wait");
        assert!(self.w.vif.device().state().filter.directed, "nothing is to be received");
    }

    /// Packets the card has for the guest.
    fn waiting(&self) -> usize {
        self.w.vif.device().state().inbox.iter().map(|(inbox, _)| inbox.len()).sum()
    }

    fn check_counters(&self) {
        let counters = self.w.vif.counters();
        let tx = counters.tx;
        assert_eq!(self.sent, (tx.packets, tx.bytes));
        if !self.is_spoilt && !self.is_removed {
            let bad = tx.bad_chains + tx.bad_grants + tx.bad_headers + tx.unsupported;
            assert_eq!((bad + tx.refused, tx.lost), (self.refused, self.lost));
        }
        let rx = counters.rx;
        let dropped = rx.no_frontend + rx.filtered + rx.too_large + rx.no_slots;
        assert_eq!(rx.packets + dropped, self.arrived - self.waiting() as u64);
        if !self.is_spoilt {
            assert_eq!(rx.packets, self.got);
        }
    }

    /// Another frontend comes, and keeps to the rules: whatever was before, it sends and receives.
    fn successor(&mut self) {
        self.w.begin_anew();
        // They are for nobody.
        self.w.pump();
        assert_eq!(self.waiting(), 0, "packets wait for a frontend that is gone");
        self.check_counters();
        let before = self.w.free_counts();
        self.w.set_state(1);
        assert_eq!(self.w.back_state(), 2, "it waits for a frontend");
        let features = Features { queues: self.features.queues, ..LINUX };
        let (mut fronts, _) = connect_all(&mut self.w, features);
        for (queue, front) in (0..).zip(&mut fronts) {
            let bytes = Recipe::tcp(200 + queue as usize).complete();
            front.post(&mut self.w, 2);
            front.flush_rx(&self.w);
            self.w.arrive(queue, Frame::new(bytes.clone()));
            self.w.pump();
            front.send(&mut self.w, &Wish::new(bytes.clone()));
            front.flush(&self.w);
            self.w.drain();
            let answers = front.answers(&mut self.w).0;
            assert!(matches!(answers[..], [(_, 0)]), "{answers:?}");
            let got = front.poll(&mut self.w);
            assert!(matches!(&got[..], [got] if got.bytes == bytes), "{got:?}");
            let log = core::mem::take(&mut self.w.vif.device().state().log);
            assert!(matches!(&log[..], [sent] if sent.bytes == bytes), "{log:?}");
        }
        let filter = self.w.vif.device().state().filter;
        assert!(filter.directed && filter.broadcast);
        self.w.set_state(6);
        assert_eq!(self.w.back_state(), 6);
        assert!(!self.w.any_in_use());
        fronts.into_iter().for_each(|front| front.destroy(&mut self.w));
        assert_eq!(self.w.free_counts(), before);
    }
}
