//! Two sites of one key domain: each with a token, a database and a server of its own, joined by the enrolment
//! ceremony as people do it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Authority, PeerOptions, Programs, Role, Running, ServerError, Site, SiteOptions,
    files::write_private,
    settings,
    site::{AUTHORITY, SiteError, free_port},
    tool::ToolError,
};

/// Something of the pair did not work out.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A site could not be laid out.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// A server or a command of it.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// `ami-tool`.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A command said something else than it should.
    #[error("{what}: {said}")]
    Said {
        /// The command.
        what: &'static str,
        /// All that it said.
        said: String,
    },
    /// What was waited for did not come.
    #[error("{what} took longer than {} s; last: {last}", after.as_secs())]
    TooLong {
        /// What was waited for.
        what: &'static str,
        /// The patience.
        after: Duration,
        /// What was seen last.
        last: String,
    },
}

/// The two sites. `a` founds the key domain, `b` joins it.
#[derive(Debug)]
pub struct Pair {
    /// The site of even epochs.
    pub a: Site,
    /// The site of odd epochs.
    pub b: Site,
}

/// The name of a read-only replica of the two.
const REPLICA: &str = "site-c";
/// The longest wait for something of the other site.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

impl Pair {
    /// Lays both out below `dir`. What `options` say of name and peer is not used.
    pub fn make(dir: &Path, programs: &Programs, options: &SiteOptions) -> Result<Self, PairError> {
        Self::make_of(dir, programs, [options, options])
    }

    /// The same of two sites that differ.
    pub fn make_of(
        dir: &Path,
        programs: &Programs,
        [of_a, of_b]: [&SiteOptions; 2],
    ) -> Result<Self, PairError> {
        let authority = Authority::make(AUTHORITY).map_err(SiteError::from)?;
        let port = || free_port().map_err(SiteError::Port);
        let (a, b) = (port()?, port()?);
        let site = |options: &SiteOptions, port, peer: &str, peer_port| {
            let even = peer == "site-b";
            let name = if even { "site-a" } else { "site-b" };
            let peer = PeerOptions {
                site: peer.to_owned(),
                port: peer_port,
                even,
                read_only: false,
                second: None,
            };
            let options = SiteOptions {
                name: name.to_owned(),
                port: Some(port),
                peer: Some(peer),
                replicas: vec![REPLICA.to_owned()],
                ..options.clone()
            };
            Site::make_under(&authority, &dir.join(name), programs.clone(), options)
        };
        Ok(Self { a: site(of_a, a, "site-b", b)?, b: site(of_b, b, "site-a", a)? })
    }

    /// A read-only replica, laid out in `dir` and not joined yet. It follows the sites of these names. What `options` say of
    /// name and peer is not used.
    pub fn replica(
        &self,
        dir: &Path,
        follows: &[&str],
        options: &SiteOptions,
    ) -> Result<Site, PairError> {
        let port = |name: &str| if name == "site-a" { self.a.port() } else { self.b.port() };
        let mut sites = follows.iter().map(|name| ((*name).to_owned(), port(name)));
        let Some((site, port)) = sites.next() else {
            return Err(PairError::Said { what: "a replica", said: "it follows nobody".into() });
        };
        let peer = PeerOptions { site, port, even: true, read_only: true, second: sites.next() };
        let options = SiteOptions { name: REPLICA.to_owned(), peer: Some(peer), ..options.clone() };
        let programs = self.a.programs().clone();
        Ok(Site::make_under(&self.a.authority()?, dir, programs, options)?)
    }

    /// `b` makes its own keys and asks to join: the file, and its fingerprint.
    pub fn ask(&self) -> Result<(String, String), PairError> {
        ask(&self.b)
    }

    /// `a` enrols the site that asks: the bundle, and its fingerprint. `a` serves meanwhile.
    pub fn enrol(&self, request: &str, fingerprint: &str) -> Result<(String, String), PairError> {
        enrol(&self.a, request, fingerprint)
    }

    /// `b` receives the bundle and founds its database.
    pub fn join(&self, bundle: &str, fingerprint: &str) -> Result<(), PairError> {
        join(&self.b, bundle, fingerprint)
    }

    /// From nothing to two sites that serve.
    pub fn start(&self) -> Result<(Running, Running), PairError> {
        self.a.init()?;
        let a = self.a.start()?;
        let (request, fingerprint) = self.ask()?;
        let (bundle, fingerprint) = self.enrol(&request, &fingerprint)?;
        self.join(&bundle, &fingerprint)?;
        Ok((a, self.b.start()?))
    }

    /// Waits until `writer` has the other one's proof of every block; how long it took.
    pub fn until_proved(&self, writer: &Site) -> Result<Duration, PairError> {
        let began = Instant::now();
        loop {
            let status = status(writer)?;
            let readiness = &status["replication"]["readiness"];
            let left = ["unproved", "failed"].map(|what| readiness[what].as_u64());
            if left == [Some(0), Some(0)] {
                return Ok(began.elapsed());
            }
            too_long("a proof of every block", began, || readiness.to_string())?;
        }
    }

    /// Waits until `site` is in this role and epoch, and says whether it writes; how long it took.
    pub fn until_it_is(&self, site: &Site, role: &str, epoch: u64) -> Result<Duration, PairError> {
        let began = Instant::now();
        loop {
            let status = status(site)?;
            let standing = &status["standing"];
            if standing["role"] == role && standing["epoch"] == epoch {
                return Ok(began.elapsed());
            }
            too_long("another role", began, || standing.to_string())?;
        }
    }

    /// A client's configuration that names both, `a` first; in `a`'s directory.
    pub fn client_toml(&self, role: Role) -> Result<PathBuf, PairError> {
        let path = self.a.places().dir.join(format!("both-{}.toml", role.caller()));
        let text = settings::client_of_both(
            role,
            [("site-a", vec![self.a.endpoint()]), ("site-b", vec![self.b.endpoint()])],
        );
        write_private(&path, &text).map_err(|source| SiteError::File {
            doing: "writing",
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }
}

/// A site makes its own keys and asks to join: the file, and its fingerprint.
pub fn ask(joining: &Site) -> Result<(String, String), PairError> {
    let file = joining.places().dir.join("join.request");
    let so_pin = joining.places().so_pin.as_os_str();
    let said = joining.run(
        "init",
        &[
            "--join".as_ref(),
            "--request".as_ref(),
            file.as_os_str(),
            "--create-token".as_ref(),
            "--so-pin-file".as_ref(),
            so_pin,
        ],
    )?;
    Ok((file.display().to_string(), told("init --join --request", &said, "fingerprint")?))
}

/// The security officer of a site that writes trusts the request, its administrator enrols the site: the bundle, and its
/// fingerprint. The site that writes serves meanwhile.
pub fn enrol(
    writer: &Site,
    request: &str,
    fingerprint: &str,
) -> Result<(String, String), PairError> {
    let so_pin = writer.places().so_pin.as_os_str();
    let [of, is] = [request, fingerprint].map(OsStr::new);
    let words = ["--request", "--fingerprint", "--so-pin-file"].map(OsStr::new);
    writer.run("trust-peer", &[words[0], of, words[1], is, words[2], so_pin])?;
    let bundle = writer.places().dir.join("bundle").display().to_string();
    let asked = ["--request", request, "--fingerprint", fingerprint, "--out", &bundle];
    let said = said_by(writer, "site enrol", &[&["site", "enrol"][..], &asked].concat())?;
    Ok((bundle, told("site enrol", &said, "fingerprint")?))
}

/// A site receives the bundle and founds its database.
pub fn join(joining: &Site, bundle: &str, fingerprint: &str) -> Result<(), PairError> {
    let words = ["--join", "--bundle", bundle, "--fingerprint", fingerprint].map(OsStr::new);
    joining.run("init", &words)?;
    Ok(())
}

/// The whole ceremony.
pub fn enrol_into(writer: &Site, joining: &Site) -> Result<(), PairError> {
    let (request, fingerprint) = ask(joining)?;
    let (bundle, fingerprint) = enrol(writer, &request, &fingerprint)?;
    join(joining, &bundle, &fingerprint)
}

/// What `ami-tool` of a site's administrator says, if it ends well.
pub fn said_by(site: &Site, what: &'static str, arguments: &[&str]) -> Result<String, PairError> {
    let output = site.ami_tool(Role::AmiAdmin).run(arguments, "")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let said = said + &String::from_utf8_lossy(&output.stderr);
    Err(PairError::Said { what, said })
}

/// The line of a report that begins with `what`.
fn told(by: &'static str, report: &str, what: &str) -> Result<String, PairError> {
    let line = report.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    let not_there = || PairError::Said { what: by, said: report.to_owned() };
    line.map(|rest| rest.trim().to_owned()).ok_or_else(not_there)
}

/// `site status --json` of a site.
fn status(site: &Site) -> Result<serde_json::Value, PairError> {
    let said = said_by(site, "site status", &["site", "status", "--json"])?;
    serde_json::from_str(&said).map_err(|_| PairError::Said { what: "site status", said })
}

/// Waits for a moment, unless it has been long enough.
fn too_long(
    what: &'static str,
    began: Instant,
    last: impl FnOnce() -> String,
) -> Result<(), PairError> {
    if began.elapsed() > PATIENCE {
        return Err(PairError::TooLong { what, after: PATIENCE, last: last() });
    }
    thread::sleep(LOOK);
    Ok(())
}
