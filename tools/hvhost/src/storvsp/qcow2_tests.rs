use crate::storvsp::disk::Disk;
use crate::storvsp::io::Transfer;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use vm_memory::VolatileSlice;

const MIB: u64 = 1 << 20;
/// Size of the disks.
const BYTES: usize = 24 << 20;

/// QEMU's own program: makes images, and says whether they are whole.
fn qemu_img(args: &[&str]) -> String {
    let out = Command::new("qemu-img").args(args).output();
    let out = out.expect("qemu-img is missing: cargo xtask setup");
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(out.status.success(), "qemu-img {args:?}: {said}");
    said
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn create(dir: &tempfile::TempDir, name: &str, more: &[&str]) -> PathBuf {
    let path = dir.path().join(name);
    let at = text(&path);
    qemu_img(&[&["create", "-q", "-f", "qcow2"], more, &[&at, "24M"]].concat());
    path
}

fn try_open(path: &Path, words: &str) -> anyhow::Result<Disk> {
    Disk::open(&format!("{},format=qcow2{words}", path.display()).parse()?, (0, 0), &[])
}

fn open(path: &Path, words: &str) -> Disk {
    try_open(path, words).unwrap()
}

fn transfer(disk: &Disk, kind: Transfer, sector: u64, data: &mut [u8]) {
    let count = data.len() as u64 / u64::from(disk.sector_bytes());
    let piece = VolatileSlice::from(data);
    assert_eq!(disk.transfer(kind, sector, count, |_| Some(vec![piece])).unwrap(), count);
}

fn read(disk: &Disk, sector: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0xee; bytes];
    transfer(disk, Transfer::Read, sector, &mut data);
    data
}

/// A guest's disk and what should be on it.
struct Pair {
    disk: Disk,
    model: Vec<u8>,
    random: u64,
    /// What was written where, in bytes, since the last flush; `None`: work flushes now
    /// and then.
    unflushed: Option<Vec<(usize, Vec<u8>)>>,
}

impl Pair {
    fn new(disk: Disk) -> Self {
        let bytes = disk.sectors() * u64::from(disk.sector_bytes());
        Self {
            disk,
            model: vec![0; bytes as usize],
            random: 0x2545_f491_4f6c_dd1d,
            unflushed: None,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// Writes, zeros, discards and reads, anywhere, of any size.
    fn work(&mut self, rounds: u32) {
        let sector = u64::from(self.disk.sector_bytes());
        for round in 0..rounds {
            let count = 1 + self.below(400);
            let first = self.below(self.disk.sectors() - count);
            let range = (first * sector) as usize..((first + count) * sector) as usize;
            match self.below(8) {
                0 => {
                    self.disk.write_same(first, count, &vec![0; sector as usize]).unwrap();
                    self.model[range.clone()].fill(0);
                }
                1 if self.disk.can_unmap() => {
                    self.disk.unmap(first, count).unwrap();
                    self.model[range.clone()].fill(0);
                }
                2 => {
                    let now = read(&self.disk, first, range.len());
                    assert!(now == self.model[range.clone()], "round {round}, sector {first}");
                }
                3 if self.unflushed.is_none() => self.disk.flush().unwrap(),
                _ => {
                    let mut data: Vec<u8> = range
                        .clone()
                        .map(|n| (n as u32).wrapping_add(round * 7919) as u8)
                        .collect();
                    transfer(&self.disk, Transfer::Write, first, &mut data);
                    self.model[range.clone()].copy_from_slice(&data);
                }
            }
            if let Some(unflushed) = &mut self.unflushed {
                unflushed.push((range.start, self.model[range].to_vec()));
            }
        }
    }
}

/// Nothing is wrong with the image, and it holds these bytes, as QEMU sees it.
fn is_whole(dir: &tempfile::TempDir, image: &Path, model: &[u8]) {
    let said = qemu_img(&["check", "-f", "qcow2", &text(image)]);
    assert!(said.contains("No errors were found"), "{said}");
    let raw = dir.path().join("converted");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &text(image), &text(&raw)]);
    assert!(fs::read(raw).unwrap() == model, "QEMU reads other data");
}

#[test]
fn what_is_written_is_there_for_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let shapes: [(&[&str], &str); 6] = [
        (&[], ""),
        (&["-o", "cluster_size=4096"], ",direct=off"),
        (&["-o", "cluster_size=2M,refcount_bits=1"], ",sector=4096"),
        (&["-o", "compat=0.10"], ""),
        (&["-o", "preallocation=metadata"], ""),
        (&["-o", "lazy_refcounts=on,extended_l2=off"], ",cache=volatile"),
    ];
    for (number, (how, words)) in shapes.into_iter().enumerate() {
        let image = create(&dir, &format!("image{number}"), how);
        let mut pair = Pair::new(open(&image, words));
        assert_eq!(pair.disk.sectors() * u64::from(pair.disk.sector_bytes()), BYTES as u64);
        assert_eq!(pair.disk.can_unmap(), !how.contains(&"compat=0.10"), "{how:?}");
        pair.work(400);
        pair.disk.settle().unwrap();
        // Not closed: what is confirmed is in the file.
        is_whole(&dir, &image, &pair.model);
        drop(pair.disk);
        pair.disk = open(&image, words);
        assert!(read(&pair.disk, 0, pair.model.len()) == pair.model, "{how:?}: read again");
    }
}

/// A hvhost that is killed leaves what it had in memory unwritten: the image is one all
/// the same, has what was flushed, and of the rest what each sector had at some
/// time since.
#[test]
fn a_kill_costs_what_was_not_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let image = create(&dir, "image", &["-o", "cluster_size=4096"]);
    let mut pair = Pair::new(open(&image, ""));
    for kill in 0..12u32 {
        pair.work(30);
        pair.disk.flush().unwrap();
        let flushed = pair.model.clone();
        let rounds = 1 + pair.below(30) as u32;
        pair.unflushed = Some(Vec::new());
        pair.work(rounds);
        let written = pair.unflushed.take().unwrap();
        std::mem::forget(std::mem::replace(&mut pair.disk, open(&image, ",ro")));
        let out = Command::new("qemu-img").args(["check", "-f", "qcow2", &text(&image)]).output();
        // 3: clusters that nothing uses.
        let out = out.unwrap();
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(matches!(out.status.code(), Some(0 | 3)), "kill {kill}: {said}");
        pair.disk = open(&image, "");
        let now = read(&pair.disk, 0, BYTES);
        for (sector, now) in now.chunks(512).enumerate() {
            let at = sector * 512;
            let is = |(from, data): &(usize, Vec<u8>)| {
                at.checked_sub(*from).and_then(|at| data.get(at..at + 512)) == Some(now)
            };
            let known = now == &flushed[at..at + 512] || written.iter().any(is);
            assert!(known, "kill {kill}: sector {sector}");
        }
        pair.model = now;
    }
}

#[test]
fn workers_write_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = create(&dir, "image", &["-o", "cluster_size=4096"]);
    let disk = open(&image, "");
    let mut model = vec![0u8; BYTES];
    // Neighbouring sectors, so that clusters and tables are shared.
    std::thread::scope(|scope| {
        for worker in 0..8u64 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..300u64 {
                    let sector = round * 16 + worker;
                    transfer(disk, Transfer::Write, sector, &mut [worker as u8 + 1; 512]);
                    if round % 50 == 7 {
                        disk.flush().unwrap();
                    }
                    if round % 60 == 9 {
                        disk.unmap(40_000 + worker * 256, 256).unwrap();
                    }
                }
            });
        }
    });
    for round in 0..300 {
        for worker in 0..8 {
            let at = (round * 16 + worker) * 512;
            model[at..at + 512].fill(worker as u8 + 1);
        }
    }
    disk.flush().unwrap();
    is_whole(&dir, &image, &model);
}

#[test]
fn space_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = create(&dir, "image", &[]);
    let disk = open(&image, "");
    let used = || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&image).unwrap().blocks() * 512
    };
    transfer(&disk, Transfer::Write, 0, &mut vec![7; 10 << 20]);
    disk.flush().unwrap();
    assert!(used() >= 10 * MIB);
    disk.unmap(0, 20 << 10).unwrap();
    disk.flush().unwrap();
    assert!(read(&disk, 0, 10 << 20).iter().all(|b| *b == 0));
    // In the file or at least in the image, for what comes next.
    transfer(&disk, Transfer::Write, 24 << 10, &mut vec![8; 10 << 20]);
    disk.flush().unwrap();
    assert!(used() < 15 * MIB, "{} bytes", used());
}

#[test]
fn a_backing_file_is_read_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    let mut model: Vec<u8> = (0..BYTES).map(|n| (n >> 9) as u8).collect();
    fs::write(&base, &model).unwrap();
    let image = create(&dir, "image", &["-b", "base.raw", "-F", "raw"]);
    let error = format!("{:#}", try_open(&image, "").unwrap_err());
    assert!(error.contains("backing=on") && !error.contains('\n'), "{error}");
    let disk = open(&image, ",backing=on");
    assert!(read(&disk, 0, BYTES) == model);
    transfer(&disk, Transfer::Write, 3, &mut [0x55; 512]);
    disk.unmap(1000, 1000).unwrap();
    disk.flush().unwrap();
    assert!(fs::read(&base).unwrap() == model, "the backing file was written");
    model[3 * 512..4 * 512].fill(0x55);
    model[1000 * 512..2000 * 512].fill(0);
    is_whole(&dir, &image, &model);
}

#[test]
fn what_cannot_be_used_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = fs::read(create(&dir, "good", &[])).unwrap();
    let broken = |name: &str, at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let path = dir.path().join(name);
        fs::write(&path, image).unwrap();
        path
    };
    // The header's fields: version, encryption, first-level table, the dirty and the
    // corrupt bit.
    for (path, why) in [
        (broken("version", 4, &[0, 0, 0, 9]), ""),
        (broken("encrypted", 32, &[0, 0, 0, 2]), "encrypted"),
        (broken("table", 40, &[0xff; 8]), ""),
        (broken("dirty", 72 + 7, &[1]), "dirty"),
        (broken("corrupt", 72 + 7, &[2]), "corrupt"),
        (broken("magic", 0, b"RAW"), "no qcow2"),
    ] {
        let error = format!("{:#}", try_open(&path, "").unwrap_err());
        assert!(error.contains(why) && !error.contains('\n'), "{}: {error}", path.display());
    }
    let short = dir.path().join("short");
    fs::write(&short, &good[..70]).unwrap();
    assert!(try_open(&short, "").is_err());
    let kept = create(&dir, "kept", &[]);
    qemu_img(&["snapshot", "-c", "then", &text(&kept)]);
    assert!(format!("{:#}", try_open(&kept, "").unwrap_err()).contains("snapshots"));
    assert!(open(&kept, ",ro").is_read_only());
}

/// What a table names beyond the file, or twice, is an error or zeros for the guest,
/// never a fault of ours.
#[test]
fn broken_tables_are_survived() {
    let dir = tempfile::tempdir().unwrap();
    let image = create(&dir, "image", &["-o", "cluster_size=4096"]);
    Pair::new(open(&image, "")).work(60);
    let good = fs::read(&image).unwrap();
    let mut random = 88_172_645_463_325_252u64;
    for _ in 0..60 {
        let mut bytes = good.clone();
        for _ in 0..24 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Behind the header: the tables come first.
            let at = 4096 + (random >> 20) as usize % (bytes.len() / 8);
            bytes[at] = random as u8;
        }
        fs::write(&image, bytes).unwrap();
        let Ok(disk) = try_open(&image, "") else { continue };
        for sector in (0..disk.sectors()).step_by(1999) {
            let mut data = [1; 4096];
            let piece = VolatileSlice::from(&mut data[..]);
            let count = (disk.sectors() - sector).min(8);
            let some = |bytes| piece.subslice(0, bytes as usize).ok().map(|p| vec![p]);
            let _ = disk.transfer(Transfer::Read, sector, count, some);
            let _ = disk.transfer(Transfer::Write, sector, count, some);
            let _ = disk.unmap(sector, count);
        }
        let _ = disk.settle();
    }
}
