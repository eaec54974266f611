//! Guests by their configurations of xl or xm (xl.cfg(5)).

pub mod disk;
pub mod keys;
pub mod syntax;
pub mod vif;

#[cfg(test)]
mod tests;

use super::host::Host;
use super::{check_mode, pygrub_options};
use crate::guest::{Guest, Mac, Nic};
use crate::pack::plan::{Boot, Plan, PlannedDisk};
use anyhow::{Context, Result, anyhow, bail, ensure};
use disk::DiskSpec;
use syntax::{Setting, Value};
use vif::VifSpec;

/// Memory of a guest whose configuration says nothing, as xl has it.
const DEFAULT_MIB: u64 = 128;

/// How a configuration is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Keys nobody knows are left out instead of refused.
    pub ignores_unknown: bool,
    /// An HVM guest is tried as PV guest.
    pub as_pv: bool,
}

/// A configuration.
struct Config {
    settings: Vec<Setting>,
    left_out: Vec<String>,
}

/// The plan for the guest that `file` describes.
///
/// # Errors
/// What is wrong, with its line where it has one.
pub fn plan(file: &[u8], host: &Host, reading: Reading) -> Result<Plan> {
    let mut config = Config { settings: syntax::parse(file)?, left_out: Vec::new() };
    config.check_keys(reading.ignores_unknown)?;
    config.check_type(reading.as_pv)?;
    let name = config.text("name")?.context("the configuration gives the guest no name")?;
    let (cpus, online) = config.cpus()?;
    let guest = Guest {
        uuid: config.text("uuid")?,
        memory_mib: config.memory()?,
        cpus,
        online,
        nics: config.nics(&name)?,
        name,
    };
    let disks = config.disks(host)?;
    let boot = config.boot(host)?;
    Ok(Plan { guest, boot, disks, left_out: config.left_out })
}

impl Config {
    /// Every key is carried over, or there is a reason why it is not.
    fn check_keys(&mut self, ignores_unknown: bool) -> Result<()> {
        for Setting { name, line, .. } in &self.settings {
            // Judged by their values.
            if keys::CARRIED.contains(&name.as_str()) || name == "builder" {
                continue;
            }
            match keys::why_left_out(name) {
                Some(why) => self.left_out.push(format!("{name} (line {line}): {why}")),
                None if ignores_unknown => {
                    self.left_out.push(format!("{name} (line {line}): nobody knows it"));
                }
                None => {
                    let near = keys::similar(name).map(|key| format!("; {key} is known"));
                    bail!("line {line}: the key \"{name}\" is unknown{}", near.unwrap_or_default());
                }
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    /// A string; an empty one is none.
    fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(setting) = self.find(name) else { return Ok(None) };
        match &setting.value {
            Value::Text(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Value::List(_) => bail!("line {}: {name} is a string, not a list", setting.line),
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let line = self.find(name).map_or(0, |setting| setting.line);
        let text = text.trim();
        let number = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        let number =
            number.map_err(|_| anyhow!("line {line}: {name} = {text}: a number was expected"));
        number.map(Some)
    }

    /// A list's strings; a string alone is a list of one, as xm had it.
    fn list(&self, name: &str) -> Result<Vec<(usize, String)>> {
        let Some(Setting { value, line, .. }) = self.find(name) else { return Ok(Vec::new()) };
        let items = match value {
            Value::Text(text) if text.is_empty() => Vec::new(),
            Value::Text(_) => vec![value.clone()],
            Value::List(items) => items.clone(),
        };
        let text = |item: Value| match item {
            Value::Text(text) => Ok((*line, text)),
            Value::List(_) => {
                Err(anyhow!("line {line}: {name} is a list of strings, not of lists"))
            }
        };
        items.into_iter().map(text).collect()
    }

    fn check_type(&self, as_pv: bool) -> Result<()> {
        let old = self.text("builder")?;
        let kind = self.text("type")?;
        match (kind.as_deref(), old.as_deref()) {
            (Some("pv"), _) | (None, None | Some("generic" | "linux")) => Ok(()),
            (Some("hvm"), _) | (None, Some("hvm")) => check_mode("an HVM", as_pv),
            (Some("pvh"), _) => check_mode("a PVH", as_pv),
            (Some(other), _) => bail!("type = {other}: pv, hvm or pvh was expected"),
            (None, Some(other)) => bail!("builder = {other}: generic or hvm was expected"),
        }
    }

    fn memory(&mut self) -> Result<u64> {
        let (memory, most) = (self.number("memory")?, self.number("maxmem")?);
        if let (Some(memory), Some(most)) = (memory, most)
            && memory != most
        {
            self.left_out.push(format!(
                "maxmem = {most}: the guest has {memory} MiB from its start to its end"
            ));
        }
        Ok(memory.or(most).unwrap_or(DEFAULT_MIB))
    }

    /// Processors, and how many of them are online at the start if not all are.
    fn cpus(&self) -> Result<(u32, Option<u32>)> {
        let (cpus, most) = (self.number("vcpus")?, self.number("maxvcpus")?);
        let cpus = cpus.or(most).unwrap_or(1);
        let most = most.unwrap_or(cpus).max(cpus);
        let online = u32::try_from(cpus).ok().filter(|_| cpus < most);
        let most = u32::try_from(most);
        Ok((most.with_context(|| format!("vcpus = {cpus}: there are no such machines"))?, online))
    }

    fn disks(&mut self, host: &Host) -> Result<Vec<PlannedDisk>> {
        let mut disks: Vec<PlannedDisk> = Vec::new();
        for (line, text) in self.list("disk")? {
            let at = || format!("line {line}: disk \"{text}\"");
            let spec = DiskSpec::parse(&text).with_context(at)?;
            let name = spec.vdev.name();
            ensure!(
                disks.iter().all(|other| other.vdev != spec.vdev),
                "line {line}: there are two disks {name}"
            );
            let source = spec.target.as_deref().map(|target| host.disk(target, spec.format));
            let source = source.transpose().with_context(at)?;
            source.as_ref().map(Host::check).transpose().with_context(at)?;
            for word in spec.left_out {
                self.left_out.push(format!("{word} of {name}: it is about the host's backend"));
            }
            let (vdev, read_only, cdrom) = (spec.vdev, spec.read_only, spec.cdrom);
            disks.push(PlannedDisk { vdev, read_only, cdrom, source });
        }
        Ok(disks)
    }

    fn nics(&mut self, guest: &str) -> Result<Vec<Nic>> {
        let mut nics: Vec<Nic> = Vec::new();
        for (index, (line, text)) in (0..).zip(self.list("vif")?) {
            let at = || format!("line {line}: vif \"{text}\"");
            let spec = VifSpec::parse(&text).with_context(at)?;
            let number = spec.devid.unwrap_or(index);
            ensure!(
                nics.iter().all(|other| other.number != number),
                "line {line}: there are two interfaces {number}"
            );
            let mac = spec.mac.unwrap_or_else(|| {
                let made = Mac::made_for(guest, number);
                self.left_out.push(format!(
                    "the address of vif {number}: Xen made one at each start; it is {made} from now on"
                ));
                made
            });
            for word in spec.left_out {
                self.left_out
                    .push(format!("{word} of vif {number}: it is about the host's bridge"));
            }
            nics.push(Nic { number, mac, mtu: spec.mtu, network: spec.bridge });
        }
        Ok(nics)
    }

    /// The kernel, as xl finds it: a file of the host's, or what a boot loader finds.
    fn boot(&mut self, host: &Host) -> Result<Boot> {
        let cmdline = self.cmdline()?;
        if let Some(kernel) = self.text("kernel")? {
            let initrd = self.text("ramdisk")?;
            let initrd = initrd.map(|path| host.kernel_file("ramdisk", &path)).transpose()?;
            let kernel = host.kernel_file("kernel", &kernel)?;
            return Ok(Boot::Files { kernel, initrd, cmdline: cmdline.unwrap_or_default() });
        }
        if let Some(loader) = self.text("bootloader")? {
            let name = loader.rsplit('/').next().unwrap_or_default();
            ensure!(
                name == "pygrub",
                "bootloader = {loader}, which is a program of Xen's host: --kernel says what it would have found"
            );
        }
        let options = self.list("bootloader_args")?;
        let options: Vec<_> = options.into_iter().map(|(_, option)| option).collect();
        let (entry, args, left_out) = pygrub_options(&options.join(" "));
        self.left_out.extend(left_out);
        // pygrub puts them behind the entry's own.
        let append = [cmdline, args].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let append = Some(append).filter(|append| !append.is_empty());
        Ok(Boot::Disk { entry, append, initrd: None })
    }

    /// As xl puts it together (`tools/xl/xl_parse.c`, `parse_cmdline`).
    fn cmdline(&mut self) -> Result<Option<String>> {
        let (root, extra) = (self.text("root")?, self.text("extra")?);
        if let Some(cmdline) = self.text("cmdline")? {
            if root.is_some() || extra.is_some() {
                self.left_out.push("root and extra: cmdline goes before them, as with xl".into());
            }
            return Ok(Some(cmdline));
        }
        let root = root.map(|root| format!("root={root}"));
        let words: Vec<_> = root.into_iter().chain(extra).collect();
        Ok(Some(words.join(" ")).filter(|line| !line.is_empty()))
    }
}
