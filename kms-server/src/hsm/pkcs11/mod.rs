//! PKCS #11.
