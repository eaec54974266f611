//! Network traffic of a guest (`tests/src/traffic.rs`):
//!
//! ```text
//! traffic tcp ADDRESS:PORT down|up BYTES CONNECTIONS
//! traffic short ADDRESS:PORT CONNECTIONS
//! traffic udp ADDRESS:PORT DATAGRAMS LARGEST
//! traffic serve PORT
//! ```

#[path = "../../../src/traffic.rs"]
mod traffic;

use std::io;
use std::net::SocketAddr;
use traffic::Direction;

/// Short connections at once.
const ROWS: u64 = 8;

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    let address = |text: &str| text.parse::<SocketAddr>().map_err(io::Error::other);
    match args.as_slice() {
        ["tcp", to, direction, bytes, connections] => {
            let direction = match *direction {
                "down" => Direction::Down,
                _ => Direction::Up,
            };
            traffic::tcp_many(address(to)?, direction, number(bytes)?, number(connections)?)
        }
        ["short", to, count] => traffic::tcp_in_turn(address(to)?, number(count)?, ROWS),
        ["udp", to, datagrams, largest] => {
            let again = traffic::udp(address(to)?, number(datagrams)?, number(largest)?)?;
            println!("{again} again");
            Ok(())
        }
        ["serve", port] => {
            traffic::serve(port.parse().map_err(io::Error::other)?)?;
            loop {
                std::thread::park();
            }
        }
        _ => Err(io::Error::other("traffic tcp … | short … | udp … | serve PORT")),
    }
}
