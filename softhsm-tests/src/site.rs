//! The directory that a site lives in.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    AmiTool, Authority, Identity, Namespace, Programs, Role, SiteOptions, Tokens,
    certificates::CertificateError,
    files::{make_private_dir, random_pin, write_private},
    module::kryoptic_conf,
    places::Places,
    settings,
};

/// A site could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A file or directory could not be written or read.
    #[error("{doing} {path}")]
    File {
        /// "writing", "reading", …
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No port could be had.
    #[error("finding a free port")]
    Port(#[source] io::Error),
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// [`Site::open`] was given a directory that no [`Site::make`] laid out.
    #[error("{0} is not a site: it has no file `port`")]
    NotASite(PathBuf),
}

/// One site: a directory with its configuration, its token and its database. The server is started
/// with [`Site::start`].
#[derive(Debug)]
pub struct Site {
    pub(crate) places: Places,
    pub(crate) programs: Programs,
    port: u16,
    pub(crate) network: Option<Namespace>,
    /// The token's directory when it is not inside; removed with the site.
    _tokens: Option<TempDir>,
}

/// The subject of every development CA.
pub(crate) const AUTHORITY: &str = "development CA";

impl Site {
    /// Lays a new site out in `dir`, which is made if need be.
    pub fn make(dir: &Path, programs: Programs, options: SiteOptions) -> Result<Self, SiteError> {
        Self::make_under(&Authority::make(AUTHORITY)?, dir, programs, options)
    }

    /// The same with certificates of an authority that others have, too.
    pub fn make_under(
        authority: &Authority,
        dir: &Path,
        programs: Programs,
        options: SiteOptions,
    ) -> Result<Self, SiteError> {
        make_dir(dir)?;
        let dir = dir.canonicalize().map_err(file_error("entering", dir))?;
        let mut places = Places::of(&dir);
        let outside = match options.tokens {
            Tokens::Inside => None,
            Tokens::SharedMemory => Some(tokens_in_shared_memory()?),
        };
        if let Some(outside) = &outside {
            places.tokens = outside.path().to_owned();
        }
        for dir in [&places.data, &places.tokens, &dir.join("secrets"), &dir.join("certificates")] {
            make_dir(dir)?;
        }
        let port = match options.port {
            Some(port) => port,
            None => free_port().map_err(SiteError::Port)?,
        };
        write_secrets(&places)?;
        write_certificates(&places, authority, &options)?;
        write(&places.softhsm_conf, &settings::softhsm_conf(&places.tokens))?;
        write(&places.kryoptic_conf, &kryoptic_conf(&places.tokens))?;
        write(&places.kms_toml, &settings::kms_toml(&places, &programs, port, &options))?;
        let host = options.network.as_ref().map(|network| network.inside().to_string());
        for role in Role::ALL {
            let host = host.as_deref().unwrap_or("localhost");
            write(&dir.join(role.client_file()), &settings::client_toml(role, host, port))?;
        }
        // Last: a directory without it was not finished.
        write(&places.port(), &port.to_string())?;
        Ok(Self { places, programs, port, network: options.network, _tokens: outside })
    }

    /// Opens a site that [`Site::make`] laid out with its token inside. Its files stay as they are.
    pub fn open(dir: &Path, programs: Programs) -> Result<Self, SiteError> {
        let not_a_site = || SiteError::NotASite(dir.to_owned());
        let dir = dir.canonicalize().map_err(|_| not_a_site())?;
        let places = Places::of(&dir);
        let port = fs::read_to_string(places.port()).map_err(|_| not_a_site())?;
        let port = port.trim().parse().map_err(|_| not_a_site())?;
        Ok(Self { places, programs, port, network: None, _tokens: None })
    }

    /// Where its files are.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The programs it runs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The port that its server listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address that its server listens on.
    pub fn address(&self) -> Ipv4Addr {
        self.network.as_ref().map_or(Ipv4Addr::LOCALHOST, Namespace::inside)
    }

    /// Its server as a client names it.
    pub fn endpoint(&self) -> String {
        let host = match &self.network {
            Some(network) => network.inside().to_string(),
            None => "localhost".to_owned(),
        };
        format!("{host}:{}", self.port)
    }

    /// The configuration file of a client in this role.
    pub fn client_toml(&self, role: Role) -> PathBuf {
        self.places.dir.join(role.client_file())
    }

    /// `ami-tool` as a client in this role.
    pub fn ami_tool(&self, role: Role) -> AmiTool {
        AmiTool::new(&self.programs.ami_tool, &self.client_toml(role))
    }

    /// Its CA, to make further certificates.
    pub fn authority(&self) -> Result<Authority, SiteError> {
        let read = |path: PathBuf| fs::read_to_string(&path).map_err(file_error("reading", &path));
        let identity = Identity {
            certificate_pem: read(self.places.certificate("ca"))?,
            private_key_pem: read(self.places.private_key("ca"))?,
        };
        Ok(Authority::load(AUTHORITY, &identity)?)
    }

    /// Writes one more client configuration, with a certificate of the test's choice, and returns
    /// the tool that uses it.
    pub fn ami_tool_as(&self, name: &str, identity: &Identity) -> Result<AmiTool, SiteError> {
        write_identity(&self.places, name, identity)?;
        let text = settings::client_toml(Role::Dev, "localhost", self.port)
            .replace("/dev.", &format!("/{name}."));
        let path = self.places.dir.join(format!("client-{name}.toml"));
        write(&path, &text)?;
        Ok(AmiTool::new(&self.programs.ami_tool, &path))
    }
}

fn write_secrets(places: &Places) -> Result<(), SiteError> {
    for path in [&places.pin, &places.so_pin] {
        let pin = random_pin().map_err(file_error("reading", "/dev/urandom".as_ref()))?;
        write(path, &pin)?;
    }
    Ok(())
}

fn write_certificates(
    places: &Places,
    authority: &Authority,
    options: &SiteOptions,
) -> Result<(), SiteError> {
    let server = match options.peer {
        Some(_) => authority.site(&options.name)?,
        None => authority.server()?,
    };
    write_identity(places, "ca", &authority.identity())?;
    write_identity(places, "server", &server)?;
    for role in Role::ALL {
        write_identity(places, role.caller(), &authority.client(role.caller())?)?;
    }
    Ok(())
}

fn write_identity(places: &Places, name: &str, identity: &Identity) -> Result<(), SiteError> {
    write(&places.certificate(name), &identity.certificate_pem)?;
    write(&places.private_key(name), &identity.private_key_pem)
}

fn tokens_in_shared_memory() -> Result<TempDir, SiteError> {
    let shared_memory = Path::new("/dev/shm");
    tempfile::Builder::new()
        .prefix("softhsm-")
        .tempdir_in(shared_memory)
        .map_err(file_error("making a directory in", shared_memory))
}

/// A port that nobody listened on a moment ago.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn make_dir(path: &Path) -> Result<(), SiteError> {
    make_private_dir(path).map_err(file_error("making", path))
}

fn write(path: &Path, contents: &str) -> Result<(), SiteError> {
    write_private(path, contents).map_err(file_error("writing", path))
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SiteError {
    move |source| SiteError::File { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        Programs {
            kms_server: "/bin/kms-server".into(),
            ami_tool: "/bin/ami-tool".into(),
            softhsm: "/lib/libsofthsm2.so".into(),
        }
    }

    #[test]
    fn a_site_that_was_made_can_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let made = Site::make(dir.path(), programs(), SiteOptions::default()).unwrap();
        let opened = Site::open(dir.path(), programs()).unwrap();
        assert_eq!(opened.port(), made.port());
        for role in Role::ALL {
            assert!(opened.client_toml(role).is_file(), "{role:?}");
            assert!(opened.places().private_key(role.caller()).is_file(), "{role:?}");
        }
        assert!(opened.authority().is_ok());
    }

    #[test]
    fn an_empty_directory_is_not_a_site() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Site::open(dir.path(), programs()), Err(SiteError::NotASite(_))));
    }

    #[test]
    fn a_token_in_shared_memory_does_not_outlive_its_site() {
        let dir = tempfile::tempdir().unwrap();
        let options = SiteOptions { tokens: Tokens::SharedMemory, ..SiteOptions::default() };
        let site = Site::make(dir.path(), programs(), options).unwrap();
        let tokens = site.places().tokens.clone();
        assert!(tokens.starts_with("/dev/shm") && tokens.is_dir());
        drop(site);
        assert!(!tokens.exists());
    }
}
