//! A network of its own for a site: a namespace of Linux, with one line to the machine. What runs in two of them
//! reaches each other only through whoever passes it on. Wants root.

use std::{
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::Arc,
};

/// No namespace could be made, or its line could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("ip {arguments}: {said}")]
pub struct NoNamespace {
    /// The arguments of `ip`.
    arguments: String,
    /// Its answer.
    said: String,
}

/// A network namespace. The last one that has it takes it away.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Line>);

#[derive(Debug)]
struct Line {
    name: String,
    /// The machine's end of the line.
    outside: String,
    number: u8,
}

impl Namespace {
    /// The `number`-th one of this process: its network is `10.(process).(number).0/24`.
    pub fn make(number: u8) -> Result<Self, NoNamespace> {
        let process = std::process::id();
        let name = format!("kms-{process}-{number}");
        let (outside, inside) = (format!("k{process}o{number}"), format!("k{process}i{number}"));
        ip(&["netns", "add", &name])?;
        let made = Self(Arc::new(Line { name: name.clone(), outside: outside.clone(), number }));
        let [there, here] = [made.inside(), made.outside()].map(|at| format!("{at}/24"));
        ip(&["link", "add", &outside, "type", "veth", "peer", "name", &inside, "netns", &name])?;
        ip(&["addr", "add", &here, "dev", &outside])?;
        ip(&["link", "set", &outside, "up"])?;
        ip(&["-n", &name, "addr", "add", &there, "dev", &inside])?;
        ip(&["-n", &name, "link", "set", &inside, "up"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        Ok(made)
    }

    /// The address within, where a server listens.
    pub fn inside(&self) -> Ipv4Addr {
        self.address(2)
    }

    /// The machine's address on this line: what is within reaches it, and nothing else.
    pub fn outside(&self) -> Ipv4Addr {
        self.address(1)
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        // Two of these processes at a time would have to be 200 apart to meet.
        let process = (std::process::id() % 200) as u8;
        Ipv4Addr::new(10, 20 + process, self.0.number, host)
    }

    /// Cuts the line, or mends it: packets are lost without a word, whoever sent them.
    pub fn cut(&self, cut: bool) -> Result<(), NoNamespace> {
        ip(&["link", "set", &self.0.outside, if cut { "down" } else { "up" }])
    }

    /// `program`, to be run within. It takes the place of the command, so that signals reach it.
    pub fn command(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0.name)).arg("--").arg(program);
        command
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The line goes with it.
        _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<(), NoNamespace> {
    let failed = |said: String| NoNamespace { arguments: arguments.join(" "), said };
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}
