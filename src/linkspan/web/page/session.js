// The token of this browser's session, which every question carries. Browsers divide localStorage by the port, unlike
// cookies, and all tabs have it.
export const KEPT_AS = "linkspan-token";

export function keep(token) {
  localStorage.setItem(KEPT_AS, token);
}

export function kept() {
  return localStorage.getItem(KEPT_AS) ?? "";
}

export function carrying(token) {
  return { "X-Linkspan-Token": token };
}
