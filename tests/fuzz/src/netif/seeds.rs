//! What the target starts from.

/// A packet put into a queue's ring, from a place in its page, in further slots.
fn packet(queue: u8, what: u8, kind: u8, place: u8, extras: &[u8], slots: &[u16]) -> Vec<u8> {
    let mut bytes = vec![queue << 4, what, kind, 60, place, slots.len() as u8];
    bytes.extend(extras);
    bytes.extend(slots.iter().flat_map(|slot| slot.to_le_bytes()));
    bytes
}

/// Traffic both ways on frontends of all kinds, and departures.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let send = [
        packet(0, 0, 0, 4, &[], &[]),
        packet(0, 0, 0, 9, &[], &[0x1121, 0x3042]),
        // A blank sum; to be cut up; a hash; a group to be heard, and no longer.
        packet(0, 1, 0, 3, &[], &[]),
        packet(0, 2, 4, 3, &[16, 1], &[0x7001, 0x7012, 0x7023]),
        packet(0, 3, 0, 3, &[], &[]),
        packet(0, 0x10, 0, 0, &[1], &[]),
        packet(0, 0x30, 0, 0, &[1], &[]),
        vec![0x03],
    ]
    .concat();
    let send = &send[..];
    let done: &[u8] = &[4, 0, 4, 1, 0x14, 0, 4, 0, 4, 0, 4, 0, 0x0f, 0x05, 0x15, 0x25];
    let receive: &[u8] = &[
        0x08, 30, 0x18, 30, 0x06, 0, 100, 0, 0, 0x16, 1, 200, 3, 40, 0x06, 0x15, 255, 1, 90, 0x07,
        0x09, 0x19,
    ];
    let plain = [&[0, 0, 2, 0][..], send, done, receive].concat();
    let second = [packet(1, 0, 0, 4, &[], &[]), vec![0x13]].concat();
    let several = [&[2, 4, 4, 0][..], send, &second, receive, done].concat();
    // Toeplitz of all kinds, a key, a table of 64 queues, some of them set.
    let ask: &[u8] = &[
        0x0b, 7, 1, 0, 0, 0x0b, 2, 3, 0, 0, 0x0b, 3, 0, 40, 0, 0x0b, 5, 64, 0, 0, 0x0b, 6, 5, 8, 2,
        0x0b, 1, 0, 0, 0, 0x0b, 4, 0, 0, 0,
    ];
    let hashed: &[u8] = &[0x06, 0, 30, 0x10, 0, 0x06, 0, 31, 0x10, 0, 0x07, 0x09, 0x19];
    let hashed = [&[0x21, 0x20, 2, 0][..], ask, receive, hashed, send, done].concat();
    let hashed = [&hashed, &[0x0d][..], receive].concat();
    // The card is full, its link goes, it refuses; time passes.
    let odd = [&[0x1c, 0x19, 3, 0][..], &[0x8a, 1], send, receive, done, &[0x0a, 9, 0x0f]].concat();
    let odd = [&odd, done, &[0x6a, 0x40, 0x4a, 1][..], send, done, &[0xac], receive].concat();
    // Small packets that are copied and put off, one after the other.
    let one = [packet(0, 0, 0, 4, &[], &[]), vec![0x83]].concat();
    let held = [&[0, 0, 2, 0, 0x3a, 60][..], &one, &one, &[5], &one, &[0x03, 0x83, 0x0f]].concat();
    let held = [&held, &one, &one, done, &one, &[0xac], done].concat();
    let flipped = [&[0x10, 0x40, 0, 0][..], receive, send, done].concat();
    let leaves = [&[0, 0, 2, 0][..], send, &[0x0d], send, done, &[0xda, 0xff], send].concat();
    let wild: &[u8] = &[
        0x2e, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 90, 0, 0x3e, 3, 0, 0, 0, 0x7e, 5, 0, 0, 0,
    ];
    let spoilt = [&[0x20, 0, 2, 0][..], send, receive, done, wild].concat();
    // Entries of grants, nodes, indices of what is received, messages of control.
    let wilder: &[u8] = &[
        0x4e, 9, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x5e, 0, 0, 0, 0, 0, 1, 0x37, 0x1e, 1, 2, 0, 0,
        0, 0, 0x6e, 5, 0, 0, 0, 9, 1, 0, 0, 0, 4, 0, 6,
    ];
    let spoilt_early = [&[0x20, 0, 2, 0][..], send, wilder, receive, &[0x7e, 4, 0, 0, 0]].concat();
    vec![plain, several, hashed, odd, held, flipped, leaves, spoilt, spoilt_early]
}
