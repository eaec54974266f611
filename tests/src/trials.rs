//! How tests that boot guests run: named at run time, one after the other or as many as there are
//! processors, and only if asked for by `PONTOON_E2E=1`.

use anyhow::{Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};
use pontoon::host::{Host, Under};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;

/// Tests at once, at most: each may have an emulated machine of three gigabytes.
const MOST: usize = 4;

/// The tests of a program, and what they share.
pub struct Trials<S> {
    arguments: Arguments,
    /// One for each test that runs at once.
    shared: Arc<Vec<Mutex<S>>>,
    /// Nobody asked for guests.
    ignored: bool,
    trials: Vec<Trial>,
}

impl<S: Send + 'static> Trials<S> {
    /// None yet, which run one after the other: one host, one guest at a time. Signals end what tests have
    /// started.
    pub fn new(shared: S) -> Self {
        Self::sharing(vec![shared])
    }

    fn sharing(shared: Vec<S>) -> Self {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = Some(shared.len());
        let ignored = std::env::var_os("PONTOON_E2E").is_none();
        let shared = Arc::new(shared.into_iter().map(Mutex::new).collect());
        let trials = Self { arguments, shared, ignored, trials: Vec::new() };
        if trials.will_run()
            && let Err(e) = pontoon::cleanup::on_signals(|| ())
        {
            eprintln!("signals: {e:#}");
        }
        trials
    }

    /// Whether any test is to run.
    pub fn will_run(&self) -> bool {
        !self.ignored && !self.arguments.list
    }

    /// What the first test shares with others.
    pub fn shared(&self) -> MutexGuard<'_, S> {
        a_free_one(&self.shared)
    }

    /// Adds a test. One that fails is tried once more if `again` says so, which makes what is shared
    /// fit for that; docs/testing.md says what for.
    pub fn add(
        &mut self,
        name: String,
        test: impl Fn(&mut S) -> Result<()> + Send + 'static,
        again: fn(&mut S) -> bool,
    ) {
        let shared = Arc::clone(&self.shared);
        let run = move || {
            let mut shared = a_free_one(&shared);
            test(&mut shared)
                .or_else(|e| {
                    if !again(&mut shared) {
                        return Err(e);
                    }
                    eprintln!("failed, once more: {e:#}");
                    test(&mut shared)
                })
                .map_err(|e| Failed::from(format!("{e:#}")))
        };
        self.trials.push(Trial::test(name, run).with_ignored_flag(self.ignored));
    }

    /// Runs those that the command line names.
    pub fn run(self) -> ExitCode {
        let conclusion = libtest_mimic::run(&self.arguments, self.trials);
        // A host ends with what is shared; `exit` would leave it running.
        drop(self.shared);
        conclusion.exit_code()
    }
}

impl<S: Default + Send + 'static> Trials<S> {
    /// None yet, of which as many run at once as there are processors, up to [`MOST`]: an emulated machine is
    /// busy on one of them.
    pub fn beside_each_other() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self::sharing((0..processors.min(MOST)).map(|_| S::default()).collect())
    }
}

/// There are as many as there are tests at once.
fn a_free_one<S>(shared: &[Mutex<S>]) -> MutexGuard<'_, S> {
    let free = shared.iter().find_map(|one| match one.try_lock() {
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
        Ok(guard) => Some(guard),
    });
    free.unwrap_or_else(|| shared[0].lock().unwrap_or_else(PoisonError::into_inner))
}

/// The kernels that `PONTOON_E2E_KERNELS` names, or Debian 12's.
pub fn kernels() -> Vec<String> {
    let chosen = std::env::var("PONTOON_E2E_KERNELS").unwrap_or_else(|_| "bookworm".into());
    chosen.split(',').map(str::to_owned).collect()
}

/// The place that `PONTOON_E2E_UNDER` names, for guests of so much memory. Plain QEMU, which has nothing of
/// Hyper-V's, only where the tests can do without.
pub fn choose_host(memory_mib: u64, or_qemu: bool) -> Result<Host> {
    let under = match std::env::var("PONTOON_E2E_UNDER").unwrap_or_default().as_str() {
        "" | "auto" => Under::Auto,
        "kvm" => Under::Kvm,
        "nested" => Under::Nested,
        "qemu" if or_qemu => Under::Qemu,
        other if or_qemu => bail!("PONTOON_E2E_UNDER={other}: auto, kvm, nested or qemu"),
        other => bail!("PONTOON_E2E_UNDER={other}: auto, kvm or nested"),
    };
    let (host, why) = Host::choose(under, memory_mib)?;
    eprintln!("{why}");
    Ok(host)
}

/// `output`, printed as it comes, too, with `PONTOON_E2E_SHOW=1`.
pub fn shown(mut output: impl FnMut(&[u8])) -> impl FnMut(&[u8]) {
    let show = std::env::var_os("PONTOON_E2E_SHOW").is_some();
    move |bytes| {
        if show {
            eprint!("{}", String::from_utf8_lossy(bytes));
        }
        output(bytes);
    }
}
