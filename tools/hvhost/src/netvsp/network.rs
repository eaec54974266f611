//! All network adapters of a machine, and the commands that change them.

use crate::memory::Memory;
use crate::net::options::{ADAPTERS_MAX, BackendOptions};
use crate::net::{self, NetOptions};
use crate::netvsp::Nic;
use crate::netvsp::nic::Parts;
use crate::options::Options;
use crate::stats::Counters;
use crate::vmbus::Bus;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Verbs of [`Network::command`].
pub const VERBS: &str = "net-add, net-attach, net-remove, net-reoffer or net-link";

/// An adapter, and its number on the bus.
struct Entry {
    options: NetOptions,
    nic: Arc<Nic>,
    offered: usize,
}

/// The network adapters of a machine.
pub struct Network {
    bus: Arc<Bus>,
    memory: Memory,
    counters: Arc<Counters>,
    cpus: u32,
    monitored: bool,
    nics: Mutex<BTreeMap<usize, Entry>>,
    /// Adapters that are plugged in later, open already.
    detached: Mutex<BTreeMap<usize, (NetOptions, Arc<Nic>)>>,
}

impl Network {
    /// Opens the adapters of the options and offers them.
    ///
    /// # Errors
    /// A back end that cannot be used.
    pub fn new(
        bus: Arc<Bus>,
        memory: &Memory,
        options: &Options,
        counters: &Arc<Counters>,
    ) -> Result<Arc<Self>> {
        let network = Arc::new(Self {
            bus,
            memory: memory.clone(),
            counters: counters.clone(),
            cpus: options.cpus,
            monitored: options.vmbus_monitor,
            nics: Mutex::default(),
            detached: Mutex::default(),
        });
        for (number, net) in options.net.iter().enumerate() {
            let nic = network.open(number, net).with_context(|| format!("--net {net}"))?;
            if net.detached {
                lock(&network.detached).insert(number, (net.clone(), nic));
            } else {
                network.plug(&mut network.nics(), number, net, nic)?;
            }
        }
        Ok(network)
    }

    fn nics(&self) -> MutexGuard<'_, BTreeMap<usize, Entry>> {
        lock(&self.nics)
    }

    fn open(&self, number: usize, options: &NetOptions) -> Result<Arc<Nic>> {
        let backend = net::open(options)?;
        let channels = options.queues.unwrap_or(self.cpus);
        let parts = Parts {
            number,
            mac: options.mac(number),
            mtu: options.mtu,
            channels: u16::try_from(channels).unwrap_or(u16::MAX),
            monitored: self.monitored,
            backend,
            counters: self.counters.nic(&format!("net{number}")),
        };
        Nic::new(&self.memory, parts)
    }

    fn plug(
        &self,
        nics: &mut BTreeMap<usize, Entry>,
        number: usize,
        options: &NetOptions,
        nic: Arc<Nic>,
    ) -> Result<()> {
        let offered = self.bus.offer(nic.clone()).context("no channel is left")?;
        nics.insert(number, Entry { options: options.clone(), nic, offered });
        Ok(())
    }

    /// Does a command; `docs/hvhost.md` lists them.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn command(&self, line: &str) -> Result<String> {
        let (verb, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        match verb {
            "net-add" => self.add(&rest.parse()?),
            "net-attach" => self.attach(parse(rest)?),
            "net-remove" => self.remove(parse(rest)?),
            "net-reoffer" => self.reoffer(parse(rest)?),
            "net-link" => match rest.split_once(' ') {
                Some((number, "up")) => self.link(parse(number)?, true),
                Some((number, "down")) => self.link(parse(number)?, false),
                _ => bail!("net-link {rest}: expected N up or N down"),
            },
            _ => bail!("{verb:?}: expected {VERBS}"),
        }
    }

    fn add(&self, options: &NetOptions) -> Result<String> {
        let mut nics = self.nics();
        let detached = lock(&self.detached);
        let free = |n: &usize| !nics.contains_key(n) && !detached.contains_key(n);
        let number = (0..ADAPTERS_MAX).find(free).context("all numbers are taken")?;
        let nic = self.open(number, options)?;
        self.plug(&mut nics, number, options, nic)?;
        Ok(number.to_string())
    }

    fn attach(&self, number: usize) -> Result<String> {
        let mut nics = self.nics();
        let waiting = lock(&self.detached).remove(&number);
        let (options, nic) =
            waiting.with_context(|| format!("no --net …,detached of number {number}"))?;
        self.plug(&mut nics, number, &options, nic)?;
        Ok(number.to_string())
    }

    fn remove(&self, number: usize) -> Result<String> {
        let entry = self.nics().remove(&number).with_context(|| no_nic(number))?;
        self.bus.revoke(entry.offered);
        entry.nic.stop();
        Ok(number.to_string())
    }

    fn reoffer(&self, number: usize) -> Result<String> {
        let mut nics = self.nics();
        let entry = nics.get_mut(&number).with_context(|| no_nic(number))?;
        self.bus.revoke(entry.offered);
        entry.offered = self.bus.offer(entry.nic.clone()).context("no channel is left")?;
        Ok(number.to_string())
    }

    fn link(&self, number: usize, up: bool) -> Result<String> {
        let nics = self.nics();
        nics.get(&number).with_context(|| no_nic(number))?.nic.set_link(up);
        Ok(number.to_string())
    }

    /// The adapters, a line each.
    #[must_use]
    pub fn list(&self) -> String {
        let mut text = String::new();
        for (number, entry) in &*self.nics() {
            let (mac, mtu, channels) = entry.nic.facts();
            let link = if entry.nic.is_up() { "up" } else { "down" };
            let kind = match &entry.options.backend {
                BackendOptions::User { .. } => "user",
                BackendOptions::Tap { .. } => "tap",
                BackendOptions::Socket { .. } => "socket",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "net {number} {kind} mac={mac} mtu={mtu} channels={channels} link={link}"
            );
        }
        text.truncate(text.trim_end().len());
        text
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parse(text: &str) -> Result<usize> {
    text.trim().parse().with_context(|| format!("{text:?} is no number of an adapter"))
}

fn no_nic(number: usize) -> String {
    format!("there is no adapter {number}")
}
