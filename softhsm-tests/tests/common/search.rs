//! Where bytes are: in a process's memory, in files, in what was recorded.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
};

use softhsm_tests::Running;

/// One mapping of a process.
pub struct Mapping {
    start: u64,
    end: u64,
    name: String,
    locked: bool,
    dumped: bool,
    /// Nothing of it is in memory or swap: never written.
    untouched: bool,
}

impl Mapping {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    /// The arena: anonymous, locked, left out of dumps, of the size that was asked for.
    pub fn is_arena(&self, arena_mib: u64) -> bool {
        self.locked && !self.dumped && self.name.is_empty() && self.len() == arena_mib << 20
    }

    /// Whether this address is in it.
    pub fn holds(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// The file that it is of, if any.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self, arena_mib: u64) -> String {
        match self.name.as_str() {
            _ if self.is_arena(arena_mib) => "arena".to_owned(),
            "" => "anonymous (heaps and stacks of threads)".to_owned(),
            name => name.to_owned(),
        }
    }
}

/// All of a process.
pub fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((start, end)) = words[0].split_once('-') {
            mappings.push(Mapping {
                start: u64::from_str_radix(start, 16).unwrap(),
                end: u64::from_str_radix(end, 16).unwrap(),
                name: words.get(5).copied().unwrap_or_default().to_owned(),
                locked: false,
                dumped: true,
                untouched: true,
            });
        } else if matches!(words[0], "Rss:" | "Swap:") && words[1] != "0" {
            mappings.last_mut().unwrap().untouched = false;
        } else if words[0] == "VmFlags:" {
            let mapping = mappings.last_mut().unwrap();
            mapping.locked = words.contains(&"lo");
            mapping.dumped = !words.contains(&"dd");
        }
    }
    Ok(mappings)
}

/// Many short needles in much hay.
pub struct Needles {
    needles: Vec<(String, Vec<u8>)>,
    /// By their first two bytes: most places are none.
    starts: Vec<bool>,
    /// By their first four.
    by_start: HashMap<[u8; 4], Vec<usize>>,
}

impl Needles {
    /// Names and bytes, at least four each.
    pub fn new(needles: Vec<(String, Vec<u8>)>) -> Self {
        let mut starts = vec![false; 1 << 16];
        let mut by_start: HashMap<[u8; 4], Vec<usize>> = HashMap::new();
        for (index, (_, needle)) in needles.iter().enumerate() {
            let start = *needle.first_chunk::<4>().unwrap();
            starts[usize::from(u16::from_be_bytes([start[0], start[1]]))] = true;
            by_start.entry(start).or_default().push(index);
        }
        Self { needles, starts, by_start }
    }

    /// Which are there, as often as they are. Pages without content, which are most, cost little.
    pub fn found(&self, hay: &[u8]) -> Vec<&str> {
        const PAGE: usize = 4096;
        let mut found = Vec::new();
        let is_blank = |page: usize| {
            let end = hay.len().min((page + 1) * PAGE);
            hay[page * PAGE..end] == [0; PAGE][..end - page * PAGE]
        };
        let pages = hay.len().div_ceil(PAGE);
        let mut page = 0;
        while page < pages {
            let first = page;
            while page < pages && !is_blank(page) {
                page += 1;
            }
            // With a page more: a needle may reach into it, its last bytes zeros.
            found.extend(self.found_in(&hay[first * PAGE..hay.len().min((page + 1) * PAGE)]));
            page += 1;
        }
        found
    }

    fn found_in(&self, hay: &[u8]) -> Vec<&str> {
        let mut found = Vec::new();
        for (at, start) in hay.windows(4).enumerate() {
            if !self.starts[usize::from(u16::from_be_bytes([start[0], start[1]]))] {
                continue;
            }
            for index in self.by_start.get(start).into_iter().flatten() {
                let (name, needle) = &self.needles[*index];
                if hay[at..].starts_with(needle) {
                    found.push(name.as_str());
                }
            }
        }
        found
    }
}

/// A key as bytes, each half by itself: a copy that was half overwritten is found, too.
pub fn halves(name: &str, key: &[u8]) -> Vec<(String, Vec<u8>)> {
    key.chunks_exact(8).map(|half| (name.to_owned(), half.to_vec())).collect()
}

/// The same, and as text: hexadecimal in either case, base64 wherever the key begins in it, and numbers
/// as Rust's `Debug` writes them.
pub fn spellings(name: &str, key: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut needles = halves(name, key);
    for half in key.chunks_exact(8) {
        let numbers: Vec<String> = half.iter().map(u8::to_string).collect();
        for text in [hex::encode(half), hex::encode_upper(half), numbers.join(", ")] {
            needles.push((name.to_owned(), text.into_bytes()));
        }
    }
    for start in 0..3 {
        needles.push((name.to_owned(), base64(&key[start..start + 12]).into_bytes()));
    }
    needles
}

/// Of a multiple of three bytes.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |three: &[u8], shift: u32| {
        let number = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        char::from(DIGITS[(number >> shift & 63) as usize])
    };
    let four = |three| [18, 12, 6, 0].map(|shift| digit(three, shift));
    bytes.chunks_exact(3).flat_map(four).collect()
}

/// Kind of mapping → names of needles, one for each hit.
pub type Hits = BTreeMap<String, Vec<String>>;

/// Where in the process's memory the needles are, and how many bytes were searched.
fn scan(pid: u32, needles: &Needles, kind: &dyn Fn(&Mapping) -> String) -> io::Result<(Hits, u64)> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut hits = Hits::new();
    let mut scanned = 0;
    for mapping in mappings(pid)? {
        if mapping.untouched {
            continue;
        }
        let mut bytes = vec![0; mapping.len() as usize];
        // Guard pages and the kernel's own can't be read.
        if memory.read_exact_at(&mut bytes, mapping.start).is_err() {
            continue;
        }
        scanned += mapping.len();
        let names = needles.found(&bytes).into_iter().map(str::to_owned);
        hits.entry(kind(&mapping)).or_default().extend(names);
    }
    hits.retain(|_, names| !names.is_empty());
    Ok((hits, scanned))
}

/// Looks through the server's memory. `None` where this account may not: it says so.
pub fn look(running: &Running, needles: &Needles, arena_mib: u64, what: &str) -> Option<Hits> {
    look_by(running.pid(), needles, &|mapping| mapping.kind(arena_mib), what)
}

/// The same with any process, and mappings told apart by `kind`.
pub fn look_by(
    pid: u32,
    needles: &Needles,
    kind: &dyn Fn(&Mapping) -> String,
    what: &str,
) -> Option<Hits> {
    match scan(pid, needles, kind) {
        Ok((hits, scanned)) => {
            let counts: BTreeMap<&str, usize> =
                hits.iter().map(|(kind, names)| (kind.as_str(), names.len())).collect();
            println!("{what}: {} MiB scanned, hits {counts:?}", scanned >> 20);
            Some(hits)
        }
        Err(error) => {
            // Root may, and CI is root: there it is a failure.
            let is_root = rustix::process::geteuid().is_root();
            assert!(!is_root, "the server's memory can't be read: {error}");
            println!("skipped: this account may not read the server's memory: {error}");
            None
        }
    }
}
