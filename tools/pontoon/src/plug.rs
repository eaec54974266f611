//! Disks and ports plugged into and out of the running emulated machine, by QEMU's
//! control socket.
//!
//! ```text
//! file here ── QEMU's block layer ── virtio disk of the emulated machine ── hvhost
//! ```
//! A flush goes the whole way; space given back there is given back in the file.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// QEMU answers at once; the emulated machine lets a disk go when its kernel comes
/// to it.
const LIMIT: Duration = Duration::from_secs(60);

/// What hvhost's words behind a disk's path ask for: some of QEMU, the others of hvhost.
#[derive(Debug, PartialEq, Eq)]
pub struct Words {
    read_only: bool,
    qcow2: bool,
    backing: bool,
    /// Those for hvhost, each behind a comma.
    pub there: String,
}

impl Words {
    /// Takes them apart. A qcow2 image is QEMU's to read, as the emulated machine's disks
    /// cannot grow; hvhost's is what is in it, whatever that looks like.
    #[must_use]
    pub fn parse(words: &str) -> Self {
        let mut me = Self { read_only: false, qcow2: false, backing: false, there: String::new() };
        for word in words.split(',').filter(|word| !word.is_empty()) {
            me.read_only |= matches!(word, "ro" | "dvd");
            me.qcow2 |= word == "format=qcow2";
            me.backing |= word == "backing=on";
            let word = match word {
                "format=qcow2" => "format=raw",
                "backing=on" => continue,
                other => other,
            };
            me.there.push_str(&format!(",{word}"));
        }
        me
    }
}

/// Whether a qcow2 image has a backing file: an offset and a length in its header.
fn has_backing_file(path: &Path) -> Result<bool> {
    let mut header = [0; 20];
    fs::File::open(path)?.read_exact(&mut header).context("it is too short for qcow2")?;
    let [_, _, _, _, _, _, _, _, place @ ..] = header;
    Ok(place != [0; 12])
}

/// QEMU's control socket, and the disks plugged in.
pub struct Plug {
    reader: BufReader<UnixStream>,
    plugged: Vec<String>,
    ports: Vec<String>,
    /// Devices QEMU said are gone, while something else was waited for.
    deleted: Vec<String>,
    count: u32,
}

impl Plug {
    /// Connects to QEMU.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let reader = BufReader::new(stream);
        let (plugged, ports, deleted) = (Vec::new(), Vec::new(), Vec::new());
        let mut plug = Self { reader, plugged, ports, deleted, count: 0 };
        ensure!(plug.receive()?.get("QMP").is_some(), "QEMU does not greet");
        plug.execute("qmp_capabilities", &json!({}))?;
        Ok(plug)
    }

    /// Plugs a file in; its serial number.
    pub fn plug_in(&mut self, path: &Path, words: &Words) -> Result<String> {
        let context = || path.display().to_string();
        let path = path.canonicalize().with_context(context)?;
        let kind = fs::metadata(&path).with_context(context)?.file_type();
        let driver = if kind.is_block_device() { "host_device" } else { "file" };
        if words.qcow2 && !words.backing && has_backing_file(&path).with_context(context)? {
            bail!("{}: it has a backing file, which is opened only with backing=on", context());
        }
        let name = format!("disk{}", self.count);
        self.count += 1;
        let node = json!({
            "node-name": name,
            "driver": if words.qcow2 { "qcow2" } else { "raw" },
            "read-only": words.read_only,
            "discard": "unmap",
            "file": { "driver": driver, "filename": path, "discard": "unmap" },
        });
        self.execute("blockdev-add", &node).with_context(context)?;
        let device = json!({
            "driver": "virtio-blk-pci", "id": name, "drive": name, "serial": name,
            "write-cache": "on",
        });
        if let Err(e) = self.execute("device_add", &device) {
            self.execute("blockdev-del", &json!({ "node-name": name }))?;
            return Err(e).with_context(context);
        }
        self.plugged.push(name.clone());
        Ok(name)
    }

    /// Plugs in a virtio port whose bytes go to a UNIX socket; its name.
    pub fn plug_port(&mut self, socket: &Path) -> Result<String> {
        let context = || socket.display().to_string();
        let name = format!("pontoon.net{}", self.count);
        self.count += 1;
        let backend = json!({ "type": "socket", "data": {
            "addr": { "type": "unix", "data": { "path": socket } },
            "server": false,
        } });
        let chardev = json!({ "id": name, "backend": backend });
        self.execute("chardev-add", &chardev).with_context(context)?;
        let device =
            json!({ "driver": "virtserialport", "id": name, "chardev": name, "name": name });
        if let Err(e) = self.execute("device_add", &device) {
            self.execute("chardev-remove", &json!({ "id": name }))?;
            return Err(e).with_context(context);
        }
        self.ports.push(name.clone());
        Ok(name)
    }

    /// Takes all disks and ports back.
    pub fn unplug_all(&mut self) -> Result<()> {
        for name in std::mem::take(&mut self.plugged) {
            self.unplug(&name)?;
            self.execute("blockdev-del", &json!({ "node-name": name }))?;
        }
        for name in std::mem::take(&mut self.ports) {
            self.unplug(&name)?;
            self.execute("chardev-remove", &json!({ "id": name }))?;
        }
        Ok(())
    }

    fn unplug(&mut self, name: &String) -> Result<()> {
        self.execute("device_del", &json!({ "id": name }))?;
        while !self.deleted.contains(name) {
            let event = self.receive()?;
            self.note(&event);
        }
        Ok(())
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_ref().write_all(line.as_bytes())?;
        loop {
            let message = self.receive()?;
            if let Some(error) = message.get("error") {
                bail!("{}", error["desc"].as_str().unwrap_or("QEMU refuses"));
            }
            if message.get("return").is_some() {
                return Ok(());
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        if event["event"] == "DEVICE_DELETED"
            && let Some(name) = event["data"]["device"].as_str()
        {
            self.deleted.push(name.to_owned());
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line)? != 0, "QEMU is gone");
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_where_they_belong() {
        let words = Words::parse(",ro,format=qcow2,scsi=0:3,backing=on");
        assert!(words.read_only && words.qcow2 && words.backing);
        assert_eq!(words.there, ",ro,format=raw,scsi=0:3");
        let words = Words::parse(",format=vhd,dvd");
        assert!(words.read_only && !words.qcow2 && !words.backing);
        assert_eq!(words.there, ",format=vhd,dvd");
        assert_eq!(Words::parse("").there, "");
    }
}
