/** Items on a page where the caller does not say. */
export const PAGE_LIMIT = 50;
