use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn text(pool: &Pool, chain: Chain) -> Vec<u8> {
    pool.pieces(chain).flatten().copied().collect()
}

#[test]
fn slots_run_out() {
    let mut pool = Pool::new(4, 1).expect("memory");
    let full = pool.store(Payer::Guest, &[1; BLOCK * 3]).expect("room");
    assert_eq!(pool.store(Payer::Guest, b"x"), Err(Errno::ENOMEM));
    let last = pool.store(Payer::Dom0, b"x").expect("the reserve");
    assert_eq!(pool.store(Payer::Dom0, b"x"), Err(Errno::ENOMEM));
    assert_eq!(pool.store(Payer::Dom0, b""), Ok(Chain::EMPTY));
    pool.drop_text(full);
    pool.drop_text(last);
    assert_eq!((pool.nr_used(), pool.room(Payer::Guest)), (0, 3));
    assert!(Pool::new(0, 0).expect("none").store(Payer::Dom0, b"x").is_err());
}

#[test]
fn numbers() {
    let mut buf = Buf::new(40).expect("memory");
    for number in [0, 7, 10, u64::MAX] {
        buf.add_number(number).expect("room");
        buf.add(b" ").expect("room");
    }
    assert_eq!(buf.get(), b"0 7 10 18446744073709551615 ");
    assert_eq!(buf.add(&[0; 13]), Err(Errno::E2BIG));
}

proptest! {
    /// Texts are what they would be in plain memory, and no slot is lost.
    #[test]
    fn texts_are_texts(
        steps in prop::collection::vec((0..5u8, any::<u8>(), 0..200usize, 0..300usize), 1..40),
    ) {
        let mut pool = Pool::new(64, 0).expect("memory");
        let mut chain = Chain::EMPTY;
        let mut model: Vec<u8> = Vec::new();
        for (what, byte, len, at) in steps {
            match what {
                0 | 1 => {
                    let more = std::vec![byte; len];
                    let before = chain;
                    match pool.append(Payer::Dom0, &mut chain, &more) {
                        Ok(()) => model.extend_from_slice(&more),
                        Err(_) => prop_assert_eq!(chain, before),
                    }
                }
                2 => {
                    let at = at.min(model.len());
                    let count = len.min(model.len() - at);
                    pool.cut(&mut chain, at, count);
                    model.drain(at..at + count);
                }
                3 => {
                    if let Ok(copy) = pool.copy(Payer::Dom0, chain) {
                        prop_assert!(pool.same(copy, chain));
                        pool.drop_text(chain);
                        chain = copy;
                    }
                }
                _ => {
                    let mut part = std::vec![0; len];
                    let got = pool.read_at(chain, at, &mut part);
                    let expect = model.get(at.min(model.len())..).unwrap_or_default();
                    prop_assert_eq!(&part[..got], &expect[..len.min(expect.len())]);
                    let mut longer = model.clone();
                    prop_assert!(pool.is(chain, &longer) && pool.begins(chain, &longer));
                    longer.push(byte);
                    prop_assert!(!pool.is(chain, &longer) && pool.begins(chain, &longer));
                    if let Some(last) = model.last() {
                        longer.truncate(model.len() - 1);
                        longer.push(!last);
                        prop_assert!(!pool.is(chain, &longer) && !pool.begins(chain, &longer));
                    }
                }
            }
            prop_assert_eq!(text(&pool, chain), model.clone());
            prop_assert_eq!(pool.nr_used(), blocks(model.len()));
        }
        pool.drop_text(chain);
        prop_assert_eq!(pool.nr_used(), 0);
    }
}
