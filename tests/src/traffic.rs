//! Data over TCP and UDP of which the receiver knows what must come: the peer of the
//! network tests, and the program `traffic` in their guests.
//!
//! ```text
//! TCP: direction u8 | length u64 | seed u64, little-endian, then as much noise one way;
//!      what was sent up is answered by one byte
//! UDP: what comes goes back
//! ```

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

const DOWN: u8 = b'd';
const UP: u8 = b'u';
const GOOD: u8 = b'+';
const CHUNK: usize = 8 << 10;
/// A peer that says nothing for so long is gone.
const LIMIT: Duration = Duration::from_secs(120);
/// How often a datagram is sent before it counts as lost for good.
const TRIES: u32 = 8;

/// Which way the data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To whoever asks.
    Down,
    /// From whoever asks.
    Up,
}

/// Bytes that depend on their place and on the seed.
#[derive(Clone, Debug)]
struct Noise(u64);

impl Noise {
    fn fill(&mut self, to: &mut [u8]) {
        for piece in to.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            piece.copy_from_slice(word.get(..piece.len()).unwrap_or_default());
        }
    }

    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2) | 1)
    }
}

fn send(to: &mut impl Write, length: u64, seed: u64) -> io::Result<()> {
    let (mut noise, mut left, mut buffer) = (Noise::new(seed), length, [0; CHUNK]);
    while left != 0 {
        noise.fill(&mut buffer);
        let count = left.min(CHUNK as u64);
        to.write_all(buffer.get(..count as usize).unwrap_or_default())?;
        left -= count;
    }
    Ok(())
}

fn check(from: &mut impl Read, length: u64, seed: u64) -> io::Result<()> {
    let (mut noise, mut left) = (Noise::new(seed), length);
    let (mut wanted, mut got) = ([0; CHUNK], [0; CHUNK]);
    while left != 0 {
        noise.fill(&mut wanted);
        let count = left.min(CHUNK as u64) as usize;
        let got = got.get_mut(..count).unwrap_or_default();
        from.read_exact(got)?;
        if wanted.get(..count) != Some(got) {
            return Err(io::Error::other(format!("other data, {left} bytes from the end")));
        }
        left -= count as u64;
    }
    Ok(())
}

/// One connection's worth.
///
/// # Errors
/// The connection's, or other data than were sent.
pub fn tcp(to: SocketAddr, direction: Direction, length: u64, seed: u64) -> io::Result<()> {
    let mut stream = connect(to)?;
    let shut = stream.try_clone()?;
    converse(&mut stream, &shut, direction, length, seed)
}

/// A connection to [`serve`].
///
/// # Errors
/// There is none.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// As [`tcp`], on a connection that is there; `shut` is the same.
///
/// # Errors
/// As [`tcp`].
pub fn converse(
    stream: &mut (impl Read + Write),
    shut: &TcpStream,
    direction: Direction,
    length: u64,
    seed: u64,
) -> io::Result<()> {
    let letter = if direction == Direction::Down { DOWN } else { UP };
    let head = [&[letter][..], &length.to_le_bytes(), &seed.to_le_bytes()].concat();
    stream.write_all(&head)?;
    match direction {
        Direction::Down => check(stream, length, seed),
        Direction::Up => {
            send(stream, length, seed)?;
            shut.shutdown(Shutdown::Write)?;
            let mut verdict = [0];
            stream.read_exact(&mut verdict)?;
            if verdict == [GOOD] { Ok(()) } else { Err(io::Error::other("other data came there")) }
        }
    }
}

/// Several connections at once.
///
/// # Errors
/// The first of theirs.
pub fn tcp_many(to: SocketAddr, direction: Direction, length: u64, count: u64) -> io::Result<()> {
    let one = |seed| thread::spawn(move || tcp(to, direction, length, seed + 1));
    let threads: Vec<_> = (0..count).map(one).collect();
    let gone = |_| io::Error::other("a thread is gone");
    threads.into_iter().try_for_each(|thread| thread.join().map_err(gone)?)
}

/// Short connections, one after the other, so many rows of them at once.
///
/// # Errors
/// The first of theirs.
pub fn tcp_in_turn(to: SocketAddr, count: u64, rows: u64) -> io::Result<()> {
    let row = move |row: u64| {
        let numbers = (row..count).step_by(rows.try_into().unwrap_or(usize::MAX));
        let direction = |number| if number % 2 == 0 { Direction::Down } else { Direction::Up };
        thread::spawn(move || {
            let one = |number| tcp(to, direction(number / rows), 1 + number % 3000, number + 1);
            numbers.into_iter().try_for_each(one)
        })
    };
    let threads: Vec<_> = (0..rows).map(row).collect();
    let gone = |_| io::Error::other("a thread is gone");
    threads.into_iter().try_for_each(|thread| thread.join().map_err(gone)?)
}

/// Datagrams of 1 to `largest` bytes, each of which must come back; how many came back only
/// after another try.
///
/// # Errors
/// One that does not come back, or not as it was.
pub fn udp(to: SocketAddr, count: u64, largest: u64) -> io::Result<u64> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut lost, mut back) = (0, vec![0; 1 << 16]);
    for number in 0..count {
        let mut data = vec![0; (1 + number * 997 % largest) as usize];
        Noise::new(number).fill(&mut data);
        let mut tries = 0;
        while !exchange(&socket, &data, &mut back)? {
            tries += 1;
            if tries == TRIES {
                return Err(io::Error::other(format!("{} bytes do not come back", data.len())));
            }
        }
        lost += u64::from(tries != 0);
    }
    Ok(lost)
}

/// `false`: nothing came. What comes of an earlier try is passed over.
fn exchange(socket: &UdpSocket, data: &[u8], back: &mut [u8]) -> io::Result<bool> {
    socket.send(data)?;
    loop {
        match socket.recv(back) {
            Ok(count) if back.get(..count) == Some(data) => return Ok(true),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Serves both on a port of all addresses, 0: any, in the background; the port.
///
/// # Errors
/// The port is taken.
pub fn serve(port: u16) -> io::Result<u16> {
    let listener = TcpListener::bind(SocketAddr::from(([0; 16], port)))?;
    let port = listener.local_addr()?.port();
    let socket = UdpSocket::bind(SocketAddr::from(([0; 16], port)))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    thread::spawn(move || {
        let mut data = vec![0; 1 << 16];
        loop {
            // Errors are those of datagrams sent before.
            if let Ok((count, from)) = socket.recv_from(&mut data) {
                let _ = socket.send_to(data.get(..count).unwrap_or_default(), from);
            }
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut head = [0; 17];
    stream.read_exact(&mut head)?;
    let [direction, l @ .., _, _, _, _, _, _, _, _] = head;
    let seed = head.last_chunk().copied().map_or(0, u64::from_le_bytes);
    let length = u64::from_le_bytes(l);
    if direction == DOWN {
        return send(&mut stream, length, seed);
    }
    let verdict = check(&mut stream, length, seed).map_or(b'-', |()| GOOD);
    stream.write_all(&[verdict])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_and_back() {
        let port = serve(0).unwrap();
        let to: SocketAddr = ([127, 0, 0, 1], port).into();
        for direction in [Direction::Down, Direction::Up] {
            tcp_many(to, direction, 100_001, 3).unwrap();
        }
        tcp_in_turn(to, 50, 3).unwrap();
        let local = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
        assert_eq!(udp(local, 50, 9000).unwrap(), 0);
    }

    #[test]
    fn other_data_are_noticed() {
        let mut sent = Vec::new();
        send(&mut sent, 20_000, 3).unwrap();
        assert!(check(&mut sent.as_slice(), 20_000, 3).is_ok());
        assert!(check(&mut sent.as_slice(), 20_000, 4).is_err());
        sent[19_999] ^= 1;
        assert!(check(&mut sent.as_slice(), 20_000, 3).is_err());
        assert!(check(&mut sent.as_slice(), 20_001, 3).is_err());
    }
}
