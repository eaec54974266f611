//! Random requests against a model of the disk.

use core::ops::Range;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A request to be made.
#[derive(Clone, Debug)]
struct Wish {
    operation: BlkifOp,
    sector: u64,
    /// First and last sector of each segment.
    segments: Vec<(u8, u8)>,
    indirect: bool,
    /// Right behind the one before.
    follows: bool,
    fill: u8,
}

fn wish() -> impl Strategy<Value = Wish> {
    let operation = prop_oneof![
        6 => Just(BlkifOp::READ),
        6 => Just(BlkifOp::WRITE),
        1 => Just(BlkifOp::WRITE_BARRIER),
        1 => Just(BlkifOp::FLUSH_DISKCACHE),
        1 => Just(BlkifOp::DISCARD),
    ];
    let segment = (0..8u8, 0..8u8).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let bits = any::<(bool, bool, u8)>();
    (operation, 0..200u64, prop::collection::vec(segment, 0..20), bits).prop_map(
        |(operation, sector, segments, (indirect, follows, fill))| {
            let data = matches!(operation, BlkifOp::READ | BlkifOp::WRITE);
            let indirect = data && (indirect || segments.len() > 11);
            let most = if indirect { 32 } else { 11 };
            let segments = segments.into_iter().take(most).collect();
            Wish { operation, sector, segments, indirect, follows, fill }
        },
    )
}

impl Wish {
    fn sectors(&self) -> u64 {
        self.segments.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    fn range(&self) -> Range<u64> {
        self.sector..self.sector + self.sectors()
    }

    fn status(&self, sectors: u64, bad: &Range<u64>) -> i16 {
        let range = self.range();
        let is_bad = range.start < bad.end && bad.start < range.end;
        if is_bad && self.operation != BlkifOp::DISCARD {
            return -1;
        }
        let flush = matches!(self.operation, BlkifOp::WRITE_BARRIER | BlkifOp::FLUSH_DISKCACHE);
        let empty = self.segments.is_empty();
        let fits = self.range().end <= sectors;
        match self.operation {
            BlkifOp::DISCARD => {
                if fits {
                    0
                } else {
                    -1
                }
            }
            _ if empty => {
                if flush {
                    0
                } else {
                    -1
                }
            }
            _ => {
                if fits {
                    0
                } else {
                    -1
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Request(Wish),
    Notify { hold: bool },
    Complete(usize),
    Respond,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => wish().prop_map(Step::Request),
        2 => any::<bool>().prop_map(|hold| Step::Notify { hold }),
        4 => (0..20usize).prop_map(Step::Complete),
        2 => Just(Step::Respond),
    ]
}

struct Game {
    w: World,
    front: Front,
    model: Vec<u8>,
    wishes: BTreeMap<u64, Wish>,
    /// Where the last request ended, and what it was.
    last: (u64, BlkifOp),
    bad: Range<u64>,
}

impl Game {
    /// Makes a request that overlaps none under way, so that the order does not matter.
    fn request(&mut self, mut wish: Wish) {
        if wish.follows && matches!(wish.operation, BlkifOp::READ | BlkifOp::WRITE) {
            (wish.sector, wish.operation) = self.last;
        }
        let wish = &wish;
        let range = wish.range();
        let overlaps = |other: &Wish| {
            let other = other.range();
            range.start < other.end && other.start < range.end
        };
        if self.front.free_requests() == 0 || self.wishes.values().any(overlaps) {
            return;
        }
        self.last.0 = wish.range().end;
        if matches!(wish.operation, BlkifOp::READ | BlkifOp::WRITE) {
            self.last.1 = wish.operation;
        }
        if wish.operation == BlkifOp::DISCARD {
            let id = self.front.discard(&self.w, wish.sector, wish.sectors(), 0);
            self.wishes.insert(id, wish.clone());
            return;
        }
        let pieces: Vec<Piece> = wish
            .segments
            .iter()
            .map(|&(first, last)| Piece { page: self.w.page(), first, last })
            .collect();
        for (index, piece) in pieces.iter().enumerate() {
            let bytes = [wish.fill.wrapping_add(index as u8); 4096];
            set_page_bytes(&self.w.machine.plat, piece.page, 0, &bytes);
        }
        let (w, indirect) = (&mut self.w, wish.indirect);
        let id = self.front.transfer(w, wish.operation, wish.sector, &pieces, indirect);
        self.wishes.insert(id, wish.clone());
    }

    fn responses(&mut self) {
        for done in self.front.responses(&mut self.w) {
            let wish = self.wishes.remove(&done.id).expect("was asked for");
            let wanted = wish.status(self.model.len() as u64 / 512, &self.bad);
            assert_eq!(done.status, wanted, "{wish:?}");
            let mut at = wish.sector as usize * 512;
            if done.status == 0 && wish.operation == BlkifOp::DISCARD {
                self.model[at..at + wish.sectors() as usize * 512].fill(0);
            }
            if done.status != 0 && wish.range().end * 512 <= self.model.len() as u64 {
                // A part of it may have been written.
                let end = wish.range().end as usize * 512;
                let device = self.w.vbd.device().state();
                self.model[at..end].copy_from_slice(&device.data[at..end]);
            }
            for piece in &done.shadow.pieces {
                let page = page_bytes(&self.w.machine.plat, piece.page);
                let part = usize::from(piece.first) * 512..(usize::from(piece.last) + 1) * 512;
                let len = part.len();
                if done.status == 0 && wish.operation == BlkifOp::READ {
                    assert!(page[part.clone()] == self.model[at..at + len], "{wish:?}");
                    let around = page.iter().enumerate().filter(|(at, _)| !part.contains(at));
                    assert!(
                        around
                            .map(|(_, byte)| byte)
                            .all(|byte| *byte == page_fill(&wish, piece, &done))
                    );
                } else if done.status == 0 {
                    self.model[at..at + len].copy_from_slice(&page[part]);
                }
                at += len;
                self.w.free_page(piece.page);
            }
        }
    }
}

/// What a page was filled with before a read into part of it.
fn page_fill(wish: &Wish, piece: &Piece, done: &Done) -> u8 {
    let index = done.shadow.pieces.iter().position(|other| other.page == piece.page).unwrap();
    wish.fill.wrapping_add(index as u8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_disk_is_as_in_the_model(
        steps in prop::collection::vec(step(), 1..120),
        wide: bool,
        order in 0..3u32,
        room in 1..40usize,
        no_gaps: bool,
        max_segments in 1..33u16,
        bad in prop_oneof![Just(0..0u64), (0..220u64).prop_map(|at| at..at + 1)],
    ) {
        let mut w = World::new(DeviceInfo { no_gaps, max_segments, ..disk(220) });
        w.vbd.announce(&w.store).unwrap();
        let layout = if wide { Layout::X86_64 } else { Layout::X86_32 };
        let front = connect(&mut w, layout, order, 1).pop().unwrap();
        w.vbd.device().state().room = room;
        w.vbd.device().state().bad = bad.clone();
        let model = w.vbd.device().state().data.clone();
        let last = (0, BlkifOp::READ);
        let mut game = Game { w, front, model, wishes: BTreeMap::new(), last, bad };
        for step in steps {
            match step {
                Step::Request(wish) => {
                    if game.wishes.len() < 20 {
                        game.request(wish);
                    }
                }
                Step::Notify { hold: false } => game.front.flush(&game.w),
                Step::Notify { hold: true } => {
                    if game.front.push(&game.w) {
                        while game.w.vbd.kicked_holding(&game.w.env(), 0).more {}
                    }
                }
                Step::Complete(index) => {
                    let waiting = game.w.vbd.device().state().pending.len();
                    if waiting > 0 {
                        game.w.complete(index % waiting);
                        game.w.settle();
                    }
                }
                Step::Respond => game.responses(),
            }
        }
        game.front.flush(&game.w);
        while game.w.vbd.kicked(&game.w.env(), 0) {}
        game.w.drain();
        game.responses();
        prop_assert!(game.wishes.is_empty(), "left: {:?}", game.wishes);
        prop_assert!(game.w.vbd.device().state().data == game.model);
    }
}
