//! Files over HTTP, for guests of the network tests: the least that apt takes.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// A client that says nothing for so long is gone.
const LIMIT: Duration = Duration::from_secs(120);

/// Serves the files right in a directory until the process ends; the port.
///
/// # Errors
/// Those of listening.
pub fn serve(dir: &Path) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let dir = dir.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let dir = dir.clone();
            // Whoever goes away early is not served.
            thread::spawn(move || drop(answer(&dir, &client)));
        }
    });
    Ok(port)
}

fn answer(dir: &Path, client: &TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(LIMIT))?;
    let mut lines = BufReader::new(client).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    // The rest of the head.
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let file = requested(&request).and_then(|name| fs::read(dir.join(name)).ok());
    let (status, body) = file.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let mut client = client;
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    client.write_all(&body)
}

/// The file a request's first line is for; only names, no paths.
fn requested(line: &str) -> Option<PathBuf> {
    let path = line.strip_prefix("GET /")?.split(' ').next()?;
    let name = path.strip_prefix("./").unwrap_or(path);
    let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    is_name.then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn names_are_served_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Packages"), "some\n").unwrap();
        let port = serve(dir.path()).unwrap();
        let get = |path: &str| {
            let mut to = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            write!(to, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut said = String::new();
            to.read_to_string(&mut said).unwrap();
            said
        };
        assert!(
            get("/./Packages")
                .ends_with("\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsome\n")
        );
        for path in ["/", "/../x", "/./../x", "/none", "/etc/passwd", "x"] {
            assert!(get(path).starts_with("HTTP/1.1 404"), "{path}");
        }
    }
}
