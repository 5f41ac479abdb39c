//! Kryoptic as a loadable PKCS #11 module: `libkryoptic.so`. The crate has all of it but the symbol that a program
//! looks for.

use kryoptic_lib::{
    fns::general::fn_get_function_list,
    pkcs11::{CK_FUNCTION_LIST_PTR_PTR, CK_RV},
};

/// The one function that is found by its name (PKCS #11 v3.1, 5.4.4); it names all others.
#[allow(non_snake_case, reason = "the standard's name")]
#[unsafe(no_mangle)]
pub extern "C" fn C_GetFunctionList(list: CK_FUNCTION_LIST_PTR_PTR) -> CK_RV {
    fn_get_function_list(list)
}
