//! Random work of the guest, in transactions and outside, and of domain 0, beside a model that is
//! too simple to be wrong: a transaction's store is a copy of the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::*;

use super::client::Client;
use xen_abi::io::xs_wire::XsType;

/// What one does.
#[derive(Clone, Debug)]
enum Op {
    Write(String, u8),
    Mkdir(String),
    Rm(String),
    Read(String),
    List(String),
}

#[derive(Clone, Debug)]
enum Step {
    /// The guest, in one of three transactions or outside.
    Guest(usize, Op),
    Dom0(Op),
    Begin(usize),
    End(usize, bool),
}

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(std::vec!["a", "b", "c"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(path, value)| Op::Write(path, value)),
        1 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Rm),
        2 => path().prop_map(Op::Read),
        2 => path().prop_map(Op::List),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..4usize, op()).prop_map(|(t, op)| Step::Guest(t, op)),
        4 => op().prop_map(Step::Dom0),
        2 => (0..3usize).prop_map(Step::Begin),
        2 => (0..3usize, any::<bool>()).prop_map(|(t, commit)| Step::End(t, commit)),
    ]
}

/// Nodes below `data`, each with its value, the number of its creation and its last change.
#[derive(Clone, Debug, Default)]
struct Model {
    nodes: BTreeMap<String, (String, u64, u64)>,
    clock: u64,
}

fn above(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

impl Model {
    fn new() -> Self {
        Self { nodes: BTreeMap::from([(String::new(), (String::new(), 0, 0))]), clock: 0 }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn create(&mut self, path: &str) {
        if !self.nodes.contains_key(path) {
            self.create(above(path));
            let now = self.tick();
            self.nodes.insert(path.to_string(), (String::new(), now, now));
            if let Some(parent) = self.nodes.get_mut(above(path)) {
                parent.2 = now;
            }
        }
    }

    fn children(&self, path: &str) -> Vec<(u64, &str)> {
        let below = |node: &&String| !node.is_empty() && above(node) == path && *node != path;
        let mut children: Vec<(u64, &str)> = self
            .nodes
            .iter()
            .filter(|(node, _)| below(node))
            .map(|(node, value)| (value.1, node.rsplit('/').next().unwrap_or_default()))
            .collect();
        children.sort_unstable();
        children
    }

    /// The answer, and what changed. `looked` are the nodes the answer depends on.
    fn apply(
        &mut self,
        op: &Op,
        looked: &mut BTreeSet<String>,
    ) -> (Result<String, String>, Vec<String>) {
        let mut look = |path: &str, nodes: &BTreeMap<String, (String, u64, u64)>| {
            let mut at = path;
            loop {
                looked.insert(at.to_string());
                if nodes.contains_key(at) {
                    break;
                }
                at = above(at);
            }
        };
        let ok = || Ok("OK|".to_string());
        let missing = || Err("ENOENT".to_string());
        match op {
            Op::Write(path, value) => {
                look(path, &self.nodes);
                self.create(path);
                let now = self.tick();
                self.nodes.insert(path.clone(), (value.to_string(), self.nodes[path].1, now));
                (ok(), std::vec![path.clone()])
            }
            Op::Mkdir(path) => {
                look(path, &self.nodes);
                let new = !self.nodes.contains_key(path);
                self.create(path);
                (ok(), if new { std::vec![path.clone()] } else { Vec::new() })
            }
            Op::Rm(path) => {
                look(path, &self.nodes);
                if !self.nodes.contains_key(path) {
                    looked.insert(above(path).to_string());
                    let parent = self.nodes.contains_key(above(path));
                    return (if parent { ok() } else { missing() }, Vec::new());
                }
                looked.insert(above(path).to_string());
                let below = std::format!("{path}/");
                let gone: Vec<String> = self
                    .nodes
                    .keys()
                    .filter(|node| *node == path || node.starts_with(&below))
                    .cloned()
                    .collect();
                looked.extend(gone.iter().cloned());
                gone.iter().for_each(|node| drop(self.nodes.remove(node)));
                let now = self.tick();
                if let Some(parent) = self.nodes.get_mut(above(path)) {
                    parent.2 = now;
                }
                (ok(), std::vec![path.clone()])
            }
            Op::Read(path) => {
                look(path, &self.nodes);
                let value = self.nodes.get(path).map(|node| node.0.clone());
                (value.map_or_else(missing, Ok), Vec::new())
            }
            Op::List(path) => {
                look(path, &self.nodes);
                if !self.nodes.contains_key(path) {
                    return (missing(), Vec::new());
                }
                let names =
                    self.children(path).into_iter().map(|(_, name)| std::format!("{name}|"));
                (Ok(names.collect()), Vec::new())
            }
        }
    }
}

/// A transaction: its copy of the store, what it started from, what it depends on and changed.
struct Copy {
    id: u32,
    now: Model,
    looked: BTreeMap<String, Option<u64>>,
    ops: Vec<Op>,
    /// Something outside has changed what it looked at, or may have before it looked: then only
    /// the end is sure.
    stale: bool,
}

fn run_guest(c: &mut Client, tx: u32, op: &Op) -> Result<String, String> {
    let full = |path: &str| std::format!("data/{path}");
    match op {
        Op::Write(path, value) => {
            c.write(tx, &full(path), &value.to_string()).map(|()| "OK|".into())
        }
        Op::Mkdir(path) => c.one(XsType::MKDIR, tx, &full(path)),
        Op::Rm(path) => c.one(XsType::RM, tx, &full(path)),
        Op::Read(path) => c.read(tx, &full(path)),
        Op::List(path) => c.one(XsType::DIRECTORY, tx, &full(path)),
    }
}

fn run_dom0(c: &mut Client, op: &Op) -> Result<String, String> {
    let full = |path: &str| std::format!("/local/domain/1/data/{path}").into_bytes();
    let ok = |done: Result<(), xen_abi::Errno>| {
        done.map(|()| "OK|".to_string()).map_err(|_| "ENOENT".to_string())
    };
    match op {
        Op::Write(path, value) => ok(c.store.write(&full(path), value.to_string().as_bytes())),
        Op::Mkdir(path) => ok(c.store.mkdir(&full(path))),
        Op::Rm(path) => ok(c.store.rm(&full(path))),
        Op::Read(path) => {
            let mut buf = [0; 8];
            let read = c.store.read(&full(path), &mut buf).map(<[u8]>::to_vec);
            read.map(|value| String::from_utf8(value).expect("text")).map_err(|_| "ENOENT".into())
        }
        Op::List(path) => {
            let mut names = String::new();
            let listed = c.store.directory(&full(path), |name| {
                names += core::str::from_utf8(name).expect("text");
                names.push('|');
            });
            listed.map(|()| names).map_err(|_| "ENOENT".into())
        }
    }
}

fn version(model: &Model, path: &str) -> Option<u64> {
    model.nodes.get(path).map(|node| node.2)
}

fn check_all(c: &mut Client, model: &Model) -> Result<(), TestCaseError> {
    for (path, (value, ..)) in model.nodes.iter().filter(|(path, _)| !path.is_empty()) {
        prop_assert_eq!(c.read(0, &std::format!("data/{}", path)), Ok(value.clone()));
        let names: String =
            model.children(path).iter().map(|(_, name)| std::format!("{name}|")).collect();
        let listed = c.one(XsType::DIRECTORY, 0, &std::format!("data/{path}"));
        prop_assert_eq!(listed, Ok(names));
    }
    prop_assert_eq!(c.store.check(), Ok(()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn as_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut c = Client::with_home();
        c.many(XsType::WATCH, 0, "data|w").expect("room");
        c.events();
        let mut model = Model::new();
        let mut copies: [Option<Copy>; 3] = [None, None, None];
        for step in steps {
            let mut changed = Vec::new();
            let before: BTreeSet<String> = model.nodes.keys().cloned().collect();
            match step {
                Step::Begin(slot) => {
                    if copies[slot].is_none() {
                        let id = c.begin();
                        let (now, looked) = (model.clone(), BTreeMap::new());
                        copies[slot] = Some(Copy { id, now, looked, ops: Vec::new(), stale: false });
                    }
                }
                Step::End(slot, commit) => {
                    if let Some(copy) = copies[slot].take() {
                        let conflict =
                            copy.looked.iter().any(|(path, seen)| version(&model, path) != *seen);
                        let ended = c.end(copy.id, commit);
                        if commit && conflict {
                            prop_assert!(ended.is_err());
                        } else {
                            prop_assert_eq!(ended, Ok(()));
                        }
                        if commit && !conflict {
                            for op in &copy.ops {
                                let (_, more) = model.apply(op, &mut BTreeSet::new());
                                changed.extend(more);
                            }
                        }
                    }
                }
                Step::Dom0(op) => {
                    let (expect, what) = model.apply(&op, &mut BTreeSet::new());
                    prop_assert_eq!(run_dom0(&mut c, &op), expect, "{:?}", op);
                    changed = what;
                }
                Step::Guest(slot, op) => {
                    if let Some(copy) = copies.get_mut(slot).and_then(Option::as_mut) {
                        let mut looked = BTreeSet::new();
                        // What it sees for the first time, it sees as it is now.
                        let fresh = refresh(copy, &model);
                        let (expect, _) = copy.now.apply(&op, &mut looked);
                        let got = run_guest(&mut c, copy.id, &op);
                        if fresh {
                            prop_assert_eq!(&got, &expect, "{:?}", op);
                        }
                        for path in looked {
                            let seen = version(&model, &path);
                            copy.looked.entry(path).or_insert(seen);
                        }
                        copy.ops.push(op);
                    } else {
                        let (expect, what) = model.apply(&op, &mut BTreeSet::new());
                        prop_assert_eq!(run_guest(&mut c, 0, &op), expect, "{:?}", op);
                        changed = what;
                    }
                }
            }
            // Every change is told, and nothing else. What a transaction created and removed
            // again was never there.
            let there = |path: &String| before.contains(path) || model.nodes.contains_key(path);
            let expect: BTreeSet<String> = changed
                .iter()
                .filter(|path| there(path))
                .map(|path| std::format!("data/{path} w"))
                .collect();
            prop_assert_eq!(c.events().into_iter().collect::<BTreeSet<String>>(), expect);
        }
        check_all(&mut c, &model)?;
    }
}

/// Brings a transaction's copy up to date where that changes nothing it has seen; whether its
/// view is still that of one store.
fn refresh(copy: &mut Copy, model: &Model) -> bool {
    copy.stale |= copy.looked.iter().any(|(path, seen)| version(model, path) != *seen);
    if copy.stale {
        return false;
    }
    let mut now = model.clone();
    for op in &copy.ops {
        let _ = now.apply(op, &mut BTreeSet::new());
    }
    copy.now = now;
    true
}
