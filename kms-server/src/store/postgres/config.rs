//! The database, and the way to it.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// The way to the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A name, an address, or, from `/` on, the directory of a Unix socket.
    pub host: String,
    /// TCP port; part of the socket's name as well.
    pub port: u16,
    /// The database's name.
    pub database: String,
    /// The role to log in as: owner of the database, not a superuser.
    pub user: String,
    /// `None`: the server asks for none (peer authentication).
    pub password: Option<Password>,
    /// The protection of the connection.
    pub tls: Tls,
    /// Connections of this process, the one that listens included.
    pub connections_max: u32,
    /// Make the schema if there is none. Only `init` says so: a server that finds no schema must not
    /// start with an empty one.
    pub create: bool,
}

/// The protection of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// The server's certificate is from this authority and for this host.
    VerifyFull {
        /// PEM.
        ca: PathBuf,
    },
    /// The server's certificate is from this authority, whatever its name.
    VerifyCa {
        /// PEM.
        ca: PathBuf,
    },
    /// Not at all: Unix sockets and loopback addresses only.
    Off,
}

/// A connection that would leave the machine unprotected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the database at {host} would be reached without TLS: name the authority of its certificate in \
     `store.tls_ca`, or reach it by a Unix socket or a loopback address"
)]
pub struct BadTls {
    /// Where.
    pub host: String,
}

impl Config {
    /// Refuses a connection that would leave this machine unprotected.
    pub fn check_tls(&self) -> Result<(), BadTls> {
        let stays_here = self.socket_directory().is_some()
            || self.host == "localhost"
            || self.host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        if self.tls == Tls::Off && !stays_here {
            return Err(BadTls { host: self.host.clone() });
        }
        Ok(())
    }

    /// The directory of the Unix socket, if it is one.
    pub fn socket_directory(&self) -> Option<&Path> {
        self.host.starts_with('/').then(|| Path::new(&self.host))
    }

    /// Where it is, in words; without the password.
    pub(super) fn place(&self) -> String {
        format!("{} at {}, port {}", self.database, self.host, self.port)
    }
}

/// A role's password: wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes the password over.
    pub fn new(password: String) -> Self {
        Self(Zeroizing::new(password))
    }

    /// For the library that logs in, which keeps a copy of its own.
    pub fn expose_password(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_tls(host: &str) -> Config {
        Config {
            host: host.into(),
            port: 5432,
            database: "ami".into(),
            user: "ami".into(),
            password: Some(Password::new("hunter2".into())),
            tls: Tls::Off,
            connections_max: 4,
            create: false,
        }
    }

    #[test]
    fn nothing_leaves_the_machine_without_tls() {
        for host in ["/run/postgresql", "127.0.0.1", "::1", "localhost"] {
            assert_eq!(without_tls(host).check_tls(), Ok(()), "{host}");
        }
        for host in ["db.example.org", "10.0.0.1", "0.0.0.0", "localhost.example.org"] {
            let sentence = without_tls(host).check_tls().unwrap_err().to_string();
            assert!(sentence.contains(host) && sentence.contains("store.tls_ca"), "{sentence}");
            let tls = Tls::VerifyFull { ca: "/ca.pem".into() };
            assert_eq!(Config { tls, ..without_tls(host) }.check_tls(), Ok(()));
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        assert!(!format!("{:?}", without_tls("::1")).contains("hunter2"));
    }
}
