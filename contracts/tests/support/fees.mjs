/** What the chain charges by the prices of config.mjs, in nano: parameters 21 and 25 (block.tlb). */
const GAS_PRICE = 4_369_067n;
const CELL_PRICE = 436_906_667n;
const FLAT_GAS = 100n;
const FLAT_FEE = 6_667n;
const LUMP = 66_667n;
const UNIT = 65_536n;

/** @param {bigint} amount @returns {bigint} in whole units, rounded up */
const units = (amount) => (amount + UNIT - 1n) / UNIT;

/** @param {number} gas @returns {bigint} nano */
export function gasFee(gas) {
    return FLAT_FEE + units((BigInt(gas) - FLAT_GAS) * GAS_PRICE);
}

/** @param {number} [bits] beyond the root cell @param {number} [cells] beyond the root @returns {bigint} nano */
export function forwardFee(bits = 0, cells = 0) {
    return LUMP + units(BigInt(bits) * GAS_PRICE + BigInt(cells) * CELL_PRICE);
}
