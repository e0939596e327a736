package org.json

class JSONArray {
    fun length(): Int = TODO()
    fun getInt(index: Int): Int = TODO()
    fun getJSONArray(index: Int): JSONArray = TODO()
}

class JSONObject() {
    constructor(json: String) : this()

    fun getString(name: String): String = TODO()
    fun optString(name: String): String = TODO()
    fun getInt(name: String): Int = TODO()
    fun getDouble(name: String): Double = TODO()
    fun getJSONArray(name: String): JSONArray = TODO()
    fun isNull(name: String): Boolean = TODO()
    fun put(name: String, value: Any): JSONObject = TODO()

    companion object {
        @JvmField val NULL = Any()
    }
}
