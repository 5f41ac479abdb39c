//! Why certificates, keys and revocation lists can't be used.

use std::path::PathBuf;

/// The reason why a certificate, key or revocation list can't be used: one sentence, with the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read.
    #[error("{} can't be read: give its path and let this service read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no PEM certificate: put a CERTIFICATE section into it", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file holds no private key.
    #[error("{} holds no PEM private key: put a PRIVATE KEY section into it", path.display())]
    NoPrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// A private key with a passphrase.
    #[error(
        "{} is protected by a passphrase, and nobody is there to type it: write it without one \
         (openssl pkey -in OLD -out NEW), mode 640",
        path.display()
    )]
    Passphrase {
        /// The file.
        path: PathBuf,
    },
    /// Binary where text is due.
    #[error(
        "{} is DER, not PEM: convert it (openssl x509 -inform DER, or openssl pkey -inform DER)",
        path.display()
    )]
    Der {
        /// The file.
        path: PathBuf,
    },
    /// A text of another encoding.
    #[error(
        "{} begins with a byte order mark, as some editors write it: save it as plain text without one",
        path.display()
    )]
    ByteOrderMark {
        /// The file.
        path: PathBuf,
    },
    /// The server's certificate is of no use to its clients.
    #[error("the certificate in {} is refused by clients: {reason}", path.display())]
    RefusedByClients {
        /// The file.
        path: PathBuf,
        /// The reason, and what to do.
        reason: String,
    },
    /// The server's certificate is of no use where it is a client: of the other site, or of other servers of this one.
    #[error(
        "the certificate in {} is not for clients, and with it this server calls the other site, or other servers of this \
         one: issue it again with the extended key usages serverAuth and clientAuth",
        path.display()
    )]
    NotForClients {
        /// The file.
        path: PathBuf,
    },
    /// Certificates of servers in the place of those who issue them.
    #[error(
        "{} holds no certificate of an authority ({subjects}), and so nobody by whom a server could be believed: put the \
         certificate there of whoever issued that server's",
        path.display()
    )]
    NoAuthority {
        /// The file.
        path: PathBuf,
        /// The holders of what it holds.
        subjects: String,
    },
    /// Whom this server believes as the other site's, and turns away as a caller.
    #[error(
        "no authority in {} ({subjects}) stands in {}, and none of either has another one above it: the other site calls with \
         the certificate that its servers show, which is turned away. If the first file (peer.ca) is another one than issued that \
         certificate, correct that setting; if it did, put it into rpc.tls.client_ca as well",
        ca.display(),
        client_ca.display()
    )]
    PeerTurnedAway {
        /// The authorities of the other site's servers.
        ca: PathBuf,
        /// The names of these.
        subjects: String,
        /// The authorities of callers.
        client_ca: PathBuf,
    },
    /// A private key that others can read.
    #[error(
        "{} holds a private key that other accounts can read (mode {mode:03o}): run `chmod o= {}`",
        path.display(),
        path.display()
    )]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds something that can't be used.
    #[error("{} can't be used: issue it again", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The private key is not the certificate's.
    #[error(
        "the private key {} is not that of the certificate {}: install the two that were issued \
         together",
        private_key.display(),
        certificate.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate in {} has expired: renew it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
    },
    /// The certificate's time has not come.
    #[error("the certificate in {} is not valid yet: check the clock, or wait", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
    },
    /// A file holds no revocation list.
    #[error("{} holds no revocation list: put a CRL into it, in PEM (X509 CRL) or DER", path.display())]
    NoCrl {
        /// The file.
        path: PathBuf,
    },
    /// A file holds a revocation list that can't be used.
    #[error(
        "{} can't be used as a revocation list: have the authority issue it again, as a full CRL of \
         version 2 with a next update",
        path.display()
    )]
    CrlUnusable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A revocation list is past its next update.
    #[error(
        "the revocation list of {issuer} in {} has expired: install the one that the authority has \
         issued since",
        path.display()
    )]
    CrlExpired {
        /// The file.
        path: PathBuf,
        /// The authority whose list it is.
        issuer: String,
    },
    /// Somebody else signed a revocation list in an authority's name.
    #[error(
        "the revocation list of {issuer} in {} is not signed by that authority: fetch it from there \
         again",
        path.display()
    )]
    CrlForged {
        /// The file.
        path: PathBuf,
        /// The authority whose list it says that it is.
        issuer: String,
    },
    /// Two revocation lists of one authority, of which one would be ignored.
    #[error(
        "{} holds a second revocation list of {issuer}: keep the newest and remove the other",
        path.display()
    )]
    CrlTwice {
        /// The file of the second one.
        path: PathBuf,
        /// The authority whose list it is.
        issuer: String,
    },
    /// A revocation list that is older than one that was used already.
    #[error(
        "the revocation list of {issuer} in {} is an older one: {why}. What was revoked since would be let \
         in again; install the newest that the authority has issued",
        path.display()
    )]
    CrlOlder {
        /// The file.
        path: PathBuf,
        /// The authority whose list it is.
        issuer: String,
        /// In what it goes back.
        why: String,
    },
    /// A list in use is older than one that a site of the domain has used.
    #[error("{0}")]
    CrlOlderThanDomains(String),
    /// The file that remembers the newest lists can't be read.
    #[error(
        "{} is damaged, so that nobody can tell whether a revocation list is an older one: fetch the newest \
         lists from their authorities, then remove this file",
        path.display()
    )]
    CrlMemory {
        /// The file.
        path: PathBuf,
    },
    /// An authority without a revocation list: none of its clients could be let in.
    #[error(
        "there is no revocation list of {issuer}, an authority in {}: name its CRL in \
         rpc.tls.client_crl too, or remove the authority",
        path.display()
    )]
    CrlMissing {
        /// The authorities' file.
        path: PathBuf,
        /// The one of them.
        issuer: String,
    },
    /// The TLS library refused its settings.
    #[error("TLS can't be set up")]
    SetUp(#[source] Box<dyn std::error::Error + Send + Sync>),
}
