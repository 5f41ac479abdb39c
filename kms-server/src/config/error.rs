//! Why a configuration is refused: one sentence each, with the key, the value, and what to do.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// A configuration that this service does not start with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No such file, or it can't be read.
    #[error("cannot read {path}: create it after deploy/kms.toml, or name another with --config")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Written in another encoding.
    #[error("{path} is not UTF-8 text: save it as plain text (some editors write UTF-16)")]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML, an unknown field, a missing one, a value of the wrong type.
    #[error("{path}, line {line}{key}: {message}; see deploy/kms.toml for what may stand there")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The key on that line, if there is one.
        key: String,
        /// The parser's message.
        message: String,
    },
    /// A scheduled rotation that is none.
    #[error("`[[rotation.schedules]]` {name:?}: {problem}")]
    Schedule {
        /// Its name.
        name: String,
        /// What is wrong with it, and what to say instead.
        problem: String,
    },
    /// A number outside its bounds.
    #[error("`{key}` is {value}: set it to {least} to {most}")]
    OutOfRange {
        /// Section and field.
        key: &'static str,
        /// The value that is set.
        value: u64,
        /// The smallest.
        least: u64,
        /// The largest.
        most: u64,
    },
    /// A number that contradicts another.
    #[error(
        "`{key}` is {value}, less than `{other}` ({bound}): one full batch must fit in, so raise it"
    )]
    LessThan {
        /// Section and field.
        key: &'static str,
        /// The value that is set.
        value: usize,
        /// The field that it must reach.
        other: &'static str,
        /// That one's value.
        bound: usize,
    },
    /// Two listeners of one address.
    #[error("`metrics.listen` is {address}, which `rpc.listen` takes: give it another port")]
    AddressTaken {
        /// The metrics' address.
        address: SocketAddr,
    },
    /// A text that is empty, too long, or not printable.
    #[error(
        "`{key}` is {value:?}: set it to {most} or fewer printable characters, and at least one"
    )]
    Text {
        /// Section and field.
        key: &'static str,
        /// The value that is set.
        value: String,
        /// The most characters.
        most: usize,
    },
    /// A relative path: it would depend on where the service was started.
    #[error("`{key}` is {path}: write it in full, from /")]
    RelativePath {
        /// Section and field.
        key: &'static str,
        /// The path that is set.
        path: PathBuf,
    },
    /// Not an address and port.
    #[error("`{key}` is {value:?}: set it to an address and port, such as {example}")]
    Listen {
        /// Section and field.
        key: &'static str,
        /// The value that is set.
        value: String,
        /// An example of a valid value.
        example: &'static str,
    },
    /// A setting that a part refuses.
    #[error(transparent)]
    Refused(#[from] crate::rpc::BadSetting),
    /// There is no peer, and nobody said that there shall be none.
    #[error(
        "`site.single_site` is false, and no peer is configured: set it to true if these keys are \
         to exist at one site only, or name the other site in [peer]"
    )]
    NoPeer,
    /// There is a peer, and somebody said that there is none.
    #[error(
        "`site.single_site` is true, and there is a [peer]: set it to false, or remove the section"
    )]
    PeerOfSingleSite,
    /// It follows nobody, and is to follow for ever.
    #[error(
        "`site.read_only` is true, and so is `site.single_site`: a read-only site follows others; set single_site to \
         false, and name a site that may write in [peer]"
    )]
    ReadOnlyAlone,
    /// A site that may write has one peer.
    #[error(
        "`site.read_only` is false, and there is a [second_peer]: remove the section; a site that may write has one peer"
    )]
    SecondPeer,
    /// Two sections of one site.
    #[error(
        "`second_peer.site` is {0:?}, and so is another site here: name the second of the two that may write"
    )]
    SecondPeerIsFirst(String),
    /// The peer is this site.
    #[error("`peer.site` is {0:?}, which is `site.name`: write the name of the other site there")]
    PeerIsOurselves(String),
    /// Not an address of a server.
    #[error(
        "`peer.endpoints` has {0:?}: write each as in \"https://kms.south.example.org:7443\", and at \
         least one"
    )]
    Endpoint(String),
    /// Not another node's address.
    #[error("`nodes.endpoint` is {0:?}: write it as in \"https://kms-2.north.example.org:7443\"")]
    NodeEndpoint(String),
    /// Not a node's name.
    #[error(
        "`nodes.node` is {0:?}: it is what stands in the file node-id of that server's `site.data_dir`, 32 hexadecimal \
         digits"
    )]
    NodeName(String),
    /// Two addresses of one node.
    #[error("node {0} stands in [[nodes]] twice: leave one of the two out")]
    NodeTwice(kms_core::audit::NodeId),
    /// More than a site has.
    #[error(
        "[[nodes]] names {found} nodes, and a site has {most} at most: leave out those that are no more"
    )]
    Nodes {
        /// The number that it names.
        found: usize,
        /// The most.
        most: usize,
    },
    /// A proof would be too old before the next one is asked for.
    #[error(
        "`peer.proof_age_max_s` is {age}, less than twice `peer.prove_interval_s` ({interval}): raise it"
    )]
    ProofAge {
        /// The age, in seconds.
        age: u64,
        /// The interval, in seconds.
        interval: u64,
    },
    /// Two places for the PIN, or none.
    #[error("`hsm.pin_file` and `hsm.pin_env` are both set or both missing: set exactly one")]
    PinPlace,
    /// Not a variable's name; perhaps the PIN itself, so it is not repeated.
    #[error(
        "`hsm.pin_env` is not the name of an environment variable: write a name such as \
         KMS_HSM_PIN there, never the PIN"
    )]
    PinVariable,
    /// The file can't be read.
    #[error(
        "`hsm.pin_file` is {path}, which cannot be read: create it for the service account, mode 600"
    )]
    PinUnreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Others can read the file.
    #[error(
        "`hsm.pin_file` is {path}, which other accounts can read (mode {mode:03o}): \
         run `chmod 600 {path}`"
    )]
    PinExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The variable is not set, or not text.
    #[error("`hsm.pin_env` is {name}, which is not set: set it, or use `hsm.pin_file`")]
    PinNotInEnvironment {
        /// The variable.
        name: String,
    },
    /// Empty, too long, several lines, or in an encoding that the token would take for another PIN.
    #[error(
        "the PIN in {place} is empty, longer than 255 bytes, more than one line or not plain text: write \
         it on one line, without a byte order mark"
    )]
    PinMalformed {
        /// File or variable.
        place: String,
    },
    /// The database's password can't be had. It has the rules of the PIN.
    #[error(
        "`store.password_file` or `store.password_env`: the database's password is kept and named \
         as the PIN is, in one of the two places ({0})"
    )]
    Password(Box<ConfigError>),
    /// Neither TLS nor the word that it is not wanted; or both.
    #[error(
        "`store.tls_ca` and `store.allow_no_tls` are both set or both missing: name the authority of \
         the database's certificate, or, for a Unix socket or a loopback address only, set \
         allow_no_tls = true"
    )]
    StoreTls,
    /// TLS is off towards another machine.
    #[error(transparent)]
    StoreLeavesMachine(#[from] crate::store::postgres::BadTls),
    /// A signer's file can't be read.
    #[error(
        "`import.signers` names {path}, which cannot be read: put the signer's public key there"
    )]
    SignerUnreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Not a key that verifies signatures of ours.
    #[error("`import.signers` names {path}, which holds no P-256 public key in PEM")]
    Signer {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: crate::lifecycle::BadSigner,
    },
    /// No range of system titles.
    #[error("`import.signers.titles` has {titles:?}: {bad}")]
    SignerTitles {
        /// As it stands there.
        titles: String,
        /// Its fault.
        bad: crate::lifecycle::BadRange,
    },
    /// One name, two keys.
    #[error("`import.signers` names {0:?} twice: give each key a name of its own")]
    SignerTwice(String),
    /// The directory of device profiles, or one of them, can't be read.
    #[error("`profiles.dir` has {path}, which cannot be read: mend it, or name another directory")]
    ProfileUnreadable {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A device profile that is none.
    #[error("`profiles.dir` has {path}: {what}")]
    Profile {
        /// The file.
        path: PathBuf,
        /// The line, what is wrong, what to do.
        what: String,
    },
    /// Nobody could call.
    #[error("there is no [[rpc.callers]]: name at least one caller and its roles")]
    NoCallers,
    /// One name, two entries.
    #[error("`rpc.callers` names {0:?} twice: give it all of its roles in one entry")]
    CallerTwice(String),
    /// A caller that could do nothing.
    #[error("`rpc.callers` gives {0:?} no role: add one, or remove the entry")]
    NoRoles(String),
    /// A site's name for a caller that is none.
    #[error(
        "`rpc.callers` gives {0:?} a `site`, and neither the role peer nor replica: remove one, or add the other"
    )]
    SiteOfNoSite(String),
    /// Callers, roles or calls that there are not.
    #[error("`rpc.callers`, `rpc.grants` and `rpc.dual_control`: {0}")]
    Policy(crate::rpc::PolicyError),
}

// Its sentence is in ours: it is no further cause.
impl From<crate::rpc::PolicyError> for ConfigError {
    fn from(error: crate::rpc::PolicyError) -> Self {
        Self::Policy(error)
    }
}

impl ConfigError {
    /// The parser's error, as one line that says where. It may repeat what stands there, so not for
    /// the fields of PIN and password, where somebody may have written the secret itself.
    pub(super) fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let (line, key, message) = Self::at(text, error);
        Self::Syntax { path: path.to_owned(), line, key, message }
    }

    /// The line, its key, and what the parser says of it.
    pub(super) fn at(text: &str, error: &toml::de::Error) -> (usize, String, String) {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count();
        let key = text.lines().nth(line).and_then(|line| line.split_once('='));
        let key = key.map(|(key, _)| format!(", `{}`", key.trim())).unwrap_or_default();
        let is_invalid = error.message().starts_with("invalid");
        let message = match key.as_str() {
            // [store] has fields by its kind; what is wrong with one is told of the section's first
            // line, be it the password.
            "" if is_invalid => "a setting of this section has a value of the wrong type",
            key if is_invalid && (key.contains("pin") || key.contains("password")) => {
                "not a text in quotes"
            }
            _ => error.message().trim(),
        };
        let message = message.replace('\n', ", ");
        (line + 1, key, message)
    }
}
