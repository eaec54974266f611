//! Disk images and the boot menus in them.

use pontoon::image::Boot;
use pontoon::image::bytes::ReadAt;
use pontoon::image::fs::Kind;
use pontoon::image::menu::{Action, Entry, Menu, World};
use pontoon::image::{bls, grub, legacy, syslinux};
use std::rc::Rc;

use crate::input::Input;
use crate::seeds;

/// Words of the menus' languages.
pub(crate) const WORDS: &[&str] = &[
    "menuentry ",
    "submenu ",
    "linux ",
    "linux16 ",
    "initrd ",
    "search --fs-uuid --set=root ",
    "set default=",
    "${",
    "if ",
    "then ",
    "else ",
    "elif ",
    "fi\n",
    "for ",
    "in ",
    "do ",
    "done\n",
    "while ",
    "until ",
    "function ",
    "source ",
    "configfile ",
    "blscfg\n",
    "load_env\n",
    "--id ",
    "title ",
    "kernel ",
    "module ",
    "root (hd0,0)\n",
    "default=",
    "LABEL ",
    "APPEND ",
    "LINUX ",
    "include ",
    "options ",
    "(hd0,gpt1)",
    "/boot/",
    "[ ",
    " = ",
    "{\n",
    "}\n",
    "return ",
    "break\n",
];

/// Disk images: whatever is in one, it is read or refused, and a kernel that is found is no longer
/// than the image. An input is changes to one of the images there are, or an image by itself.
pub(crate) fn image(data: &[u8]) {
    let mut input = Input::new(data);
    let what = input.byte();
    let mut bytes = match seeds::images().get(usize::from(what & 3)) {
        None => input.take(data.len()).to_vec(),
        Some(image) => image.clone(),
    };
    if what & 4 != 0 {
        bytes.truncate(usize::from(input.half()) * 2);
    }
    while !bytes.is_empty()
        && let Some(len) = input.next()
    {
        let at = usize::from(input.half()) * 2 % bytes.len();
        let change = input.take(usize::from(len & 0x1f) + 1);
        bytes[at..].iter_mut().zip(change).for_each(|(to, from)| *to = *from);
    }
    let len = bytes.len();
    let image: Rc<dyn ReadAt> = Rc::new(bytes);
    for entry in [None, Some("0")] {
        if let Ok(boot) = Boot::find(Rc::clone(&image), entry) {
            assert!(boot.kernel.len() <= len);
        }
    }
}

pub(crate) fn image_seeds() -> Vec<Vec<u8>> {
    // Each as it is; a word of the superblock and of the partition table; less than a whole one.
    vec![
        vec![0],
        vec![1],
        vec![2],
        vec![0, 3, 0x0c, 2, 0, 0, 0, 0],
        vec![6, 0, 0x40, 0, 0xe0, 0, 5],
    ]
}

/// A disk whose every file holds the same.
struct Mirror<'a>(&'a str);

impl World for Mirror<'_> {
    fn by_uuid(&self, uuid: &str) -> Option<usize> {
        uuid.starts_with('1').then_some(1)
    }
    fn by_label(&self, label: &str) -> Option<usize> {
        label.starts_with('l').then_some(0)
    }
    fn by_file(&self, path: &str) -> Option<usize> {
        path.starts_with('/').then_some(0)
    }
    fn by_number(&self, number: Option<u32>) -> Option<usize> {
        number.filter(|n| (1..=2).contains(n)).map(|n| n as usize - 1)
    }
    fn device(&self, volume: usize) -> String {
        format!("hd0,gpt{}", volume + 1)
    }
    fn kind(&self, _: usize, path: &str) -> Option<Kind> {
        Some(if path.ends_with('/') { Kind::Dir } else { Kind::File(self.0.len() as u64) })
    }
    fn text(&self, _: usize, path: &str) -> Option<String> {
        (!path.contains("none")).then(|| self.0.to_owned())
    }
    fn list(&self, volume: usize, _: &str) -> Vec<String> {
        if volume == 0 { vec!["a-1.conf".into(), "a-2.conf".into()] } else { Vec::new() }
    }
}

/// Boot menus in all languages: each comes to an end, and every entry that boots Linux can be
/// chosen by its number.
pub(crate) fn bootmenu(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let world = Mirror(&text);
    let mut menus = vec![
        legacy::menu(&text, &world, 0, "/grub"),
        syslinux::menu(&text, &world, 0, "/extlinux"),
        Menu { entries: bls::entries(&world, 0, &|name| name.to_owned()), ..Menu::default() },
    ];
    menus.extend(grub::menu(&text, &world, 0, "/grub/grub.cfg"));
    for menu in &menus {
        let boots = |entry: &Entry| matches!(entry.action, Action::Linux(_));
        assert!(menu.choose(None).is_ok() || !menu.entries.iter().any(boots));
        for (index, entry) in menu.entries.iter().enumerate() {
            match menu.choose(Some(&index.to_string())) {
                Ok(chosen) => assert!(chosen.instead.is_none()),
                Err(_) => assert!(!boots(entry)),
            }
        }
    }
    let _ = grub::environment(&text);
}
